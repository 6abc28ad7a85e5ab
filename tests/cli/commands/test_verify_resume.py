"""`rewarm verify-resume`: what it refuses; tests/training/test_verify_resume.py has real runs."""


def test_a_run_that_fails_ends_in_its_own_error(recipe_file, command):
    overrides = ("--set", "data.lanes=1", "--set", "data.train.upstream.shards=/nowhere")
    code, _, err = command("verify-resume", recipe_file, *overrides)
    assert code == 3
    assert "/nowhere" in err


def test_it_takes_two_steps(recipe_file, command):
    code, _, err = command("verify-resume", recipe_file, "--steps", "1")
    assert code == 2
    assert "--steps" in err
