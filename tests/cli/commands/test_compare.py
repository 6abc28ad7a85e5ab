"""`rewarm compare`: what it refuses before any run. tests/study/test_runner.py has real runs."""

import pytest


@pytest.fixture
def study(tmp_path, thousand_steps):
    (tmp_path / "recipe.yaml").write_text(thousand_steps)
    path = tmp_path / "study.yaml"
    path.write_text(
        f"study: {tmp_path}/runs\nrecipe: recipe.yaml\narms: {{a: , b: {{seed: -1}}}}\n"
    )
    return path


def test_an_invalid_arm_is_refused_before_any_run(study, command, tmp_path):
    code, out, err = command("compare", study)
    assert (code, out) == (2, "")
    assert "arms.b: seed: should be greater than or equal to 0" in err
    assert not (tmp_path / "runs").exists()


def test_missing_data_is_refused_before_any_run(study, command, tmp_path):
    code, out, err = command("compare", study, "--set", "arms.b={}")
    assert (code, out) == (3, "")
    assert f"a/17, b/17: {tmp_path}/data/new: no such folder" in err
    assert not (tmp_path / "runs").exists()


def test_there_is_at_least_one_worker(study, command):
    code, _, err = command("compare", study, "--workers", "0")
    assert code == 2
    assert "--workers" in err
