"""Each arm predicted from all others, without a look at its own losses."""

import numpy as np
import pytest
import yaml
from predicted_studies import recipe_document
from synthetic_probes import Arm, synthetic_probe, synthetic_probes

from rewarm.predict.arms import StudiedArms
from rewarm.predict.fit import fit_model
from rewarm.predict.left_out import predict_left_out
from rewarm.predict.loss_models import LawModel
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

SETS = {"old": "upstream", "new": "downstream"}


def arms_of(probes):
    """Arms whose losses start at 3, from a base that decayed to a tenth of its peak."""
    recipe = validate_recipe(YamlDocument(yaml.safe_dump(recipe_document(Arm())), "arm"))
    starts = dict.fromkeys(SETS, 3.0)
    return StudiedArms(probes, starts, SETS, [], recipe, 2e-3, 0.1, True, {}, [])


@pytest.fixture(scope="module")
def fits():
    """Both forms, fitted to all arms; counts how often each is asked for."""
    fitted, asked = {}, []

    def fit_of(form):
        asked.append(form)
        if form not in fitted:
            model = LawModel(("old",), ("new",), 0.1, form)
            start = np.log([prior.median for prior in model.priors.values()])
            fitted[form] = fit_model(model, synthetic_probes(error=0.01), start=start)
        return fitted[form]

    fit_of.asked = asked
    return fit_of


def test_arms_are_predicted_from_the_others(fits):
    probes = synthetic_probes(error=0.01)
    left_out = predict_left_out(arms_of(probes), fits)
    assert [arm.probe.arm for arm in left_out] == [p.arm for p in probes if p.replay < 1]
    assert set(fits.asked) == {"saturating"}
    for arm in left_out:
        for name, loss in arm.losses.items():
            assert loss.measured.tolist() == (3.0 + arm.probe.changes[name]).tolist()
            error = loss.final_error(arm.probe.arm)
            assert error.measured == pytest.approx(arm.probe.changes[name][-1])
    losses = [loss for arm in left_out for loss in arm.losses.values()]
    assert sum(loss.final_error("").relative for loss in losses) < 0.05 * len(losses)
    assert sum(loss.is_inside(0.95) for loss in losses) >= len(losses) - 1
    assert not any(loss._replace(measured=loss.measured + 9).is_inside(0.95) for loss in losses)
    double = next(arm for arm in left_out if arm.probe.arm == "double")
    assert double.reach.notes == ["its peak rate is 2 times the highest of the arms"]


def test_an_arms_own_losses_do_not_change_its_prediction(fits):
    """Its measured losses could be anything; the fits differ in their start only."""
    probes = synthetic_probes(error=0.01)
    index = [probe.arm for probe in probes].index("half")
    wrong = {name: 1.5 * change for name, change in probes[index].changes.items()}
    changed = [*probes[:index], probes[index]._replace(changes=wrong), *probes[index + 1 :]]
    own, other = (
        next(arm for arm in predict_left_out(arms_of(one), fits) if arm.probe.arm == "half")
        for one in (probes, changed)
    )
    for name, loss in own.losses.items():
        changed_loss = other.losses[name]
        assert changed_loss.predicted.loss.tolist() == loss.predicted.loss.tolist()
        assert changed_loss.final_error("half").nats != loss.final_error("half").nats


def test_the_longest_arm_is_predicted_by_both_forms(fits):
    probes = [*synthetic_probes(error=0.01)[:3], synthetic_probe("long", Arm(steps=600))]
    *_, last = predict_left_out(arms_of(probes), fits)
    assert last.reach.is_longer
    assert fits.asked[-1] == "logarithmic"
