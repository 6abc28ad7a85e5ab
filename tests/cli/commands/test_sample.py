"""`rewarm sample`: checkpoints, runs and steps; the same text each time."""

import json


def test_runs_and_steps_continue_prompts(trained_run, command):
    words = ["--prompt", "ein neues", "--prompt", "the", "--tokens", 6]
    code, output, errors = command("sample", f"{trained_run}@10", trained_run, *words, "--json")
    assert code == 0, errors
    entries = json.loads(output)
    assert [(entry["checkpoint"], entry["prompt"]) for entry in entries] == [
        (f"{trained_run}@10", "ein neues"), (f"{trained_run}@10", "the"),
        (str(trained_run), "ein neues"), (str(trained_run), "the"),
    ]  # fmt: skip
    code, output, _ = command("sample", trained_run, *words)
    assert code == 0
    assert output == "".join(f"{e['prompt']}{e['text']}\n\n" for e in entries[2:])
    drawn = [
        command("sample", trained_run, *words, "--temperature", 2, "--seed", seed)[1]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_bad_input_is_one_message(trained_run, command, tmp_path):
    for words, expected, message in (
        ([tmp_path / "none", "--prompt", "x"], 3, "correct the path"),
        ([f"{trained_run}@7", "--prompt", "x"], 3, "no checkpoint at step 7"),
        ([trained_run, "--prompt", "ein", "--tokens", 100], 3, "expected at most 64 (the model's"),
        ([trained_run, "--prompt", "x", "--precision", "int4"], 2, "should be fp32, bf16 or fp16"),
    ):
        code, _, errors = command("sample", *words)
        assert code == expected, errors
        assert message in " ".join(errors.replace("│", "").split())
