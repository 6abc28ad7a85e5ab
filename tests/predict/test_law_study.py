"""The tables of the law study in docs/predict.md, against what was predicted and measured."""

import pytest
from law_accuracy import LEVELS
from law_study_tables import PROBES, SETS, SHIFTS, measured_changes, read_predictions, tables
from repository import ROOT


def test_the_page_has_the_tables_of_the_measured_curves():
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    missing = [table for table in tables() if table not in page]
    assert not missing, "python benchmarks/law_study_tables.py prints them"


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("count", PROBES)
def test_predicted_intervals_contain_one_another(shift, count):
    for arm, content in read_predictions(shift, count).items():
        for key in SETS:
            prediction = content["law"][key]
            (low, high), (lowest, highest) = (prediction[f"{level:.0%}"] for level in LEVELS)
            assert lowest < low < prediction["change"] < high < highest, (arm, key)


def test_measured_changes_by_hand():
    runs = {
        "three": {"1": [4.0, 5.0], "2": [4.0, 5.1], "3": [4.0, 5.2]},
        "one": {"1": [4.0, 4.5]},
    }
    arms = {
        arm: {"losses": {seed: dict.fromkeys(SETS, losses) for seed, losses in seeds.items()}}
        for arm, seeds in runs.items()
    }
    changes = measured_changes(arms)["upstream"]
    assert changes["three"] == pytest.approx((1.1, 0.1 / 3**0.5, 3))
    assert changes["one"] == pytest.approx((0.5, 0.1, 1))
