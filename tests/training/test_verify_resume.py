"""`rewarm verify-resume` compares a resumed run with an uninterrupted one."""

import pytest

from rewarm.training import verify_resume


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(recipe_file, command):
    code, out, err = command("verify-resume", recipe_file, "--steps", 6)
    assert code == 0, err
    assert "6 steps, uninterrupted and interrupted: weights, optimizer state, data and" in out


def test_a_run_that_fails_ends_in_its_own_error(recipe_file, command):
    code, _, err = command("verify-resume", recipe_file, "--set", "data.lanes=1", "--set",
                           "data.train.upstream.shards=/nowhere")  # fmt: skip
    assert code == 3
    assert "/nowhere" in err


@pytest.mark.slow
def test_a_difference_is_an_error(recipe_file, command, monkeypatch):
    part = verify_resume._PART.replace('f"run={run}"', 'f"run={run}", f"seed={len(run)}"')
    assert part != verify_resume._PART
    monkeypatch.setattr(verify_resume, "_PART", part)
    code, _, err = command("verify-resume", recipe_file, "--steps", 2)
    assert code == 3
    assert "the resumed run differs" in err
