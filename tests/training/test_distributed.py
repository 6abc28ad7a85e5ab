"""The same run in several processes, on gloo: FSDP2, HSDP and replicated weights."""

import process_group
import pytest
import torch
from process_group import run_processes, started_processes
from training_runs import metrics, run
from transformers import AutoModelForCausalLM

from rewarm.checkpoints.find_checkpoint import (
    last_checkpoint,
    list_checkpoints,
    read_architecture,
)
from rewarm.checkpoints.load_weights import load_model
from rewarm.checkpoints.manifest import verify_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(recipe_text, tmp_path):
    """The path of a recipe; its last batch of validation data is not full."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    return path


def train(tmp_path, size, recipe, run, *words, **faults):
    settings = ("--set", f"run={tmp_path / run}", *words)
    return run_processes(tmp_path / "processes", size, "train", recipe, *settings, **faults)


def check_same_run(run, other, tolerance=1e-6):
    """Losses and norms within a tolerance of those of one process; all else is equal."""
    lines, others = metrics(run), metrics(other)
    assert len(lines) == len(others)
    for line, expected in zip(lines, others, strict=True):
        assert line.keys() == expected.keys()
        for name, value in line.items():
            is_measured = name.endswith(("loss", "grad_norm", "perplexity", "bits_per_byte"))
            expected_value = expected[name]
            if is_measured:
                expected_value = pytest.approx(expected_value, rel=tolerance)
            elif name.endswith("/forgetting"):
                expected_value = pytest.approx(expected_value, abs=10 * tolerance)
            assert value == expected_value, (line["step"], name)


@pytest.mark.parametrize(("size", "shard"), [(2, "all"), (3, "1"), (4, "2")])
def test_the_same_run_on_any_number_of_processes(recipe, tmp_path, trained_run, size, shard):
    # 16 sequences: 3 processes have 6, 5 and 5 of them, so two have one of padding.
    ended = train(tmp_path, size, recipe, "run", "--set", f"parallel.shard={shard}")
    assert ended.codes == [0] * size
    assert ended.output == f"{tmp_path / 'run'}/checkpoints/step-00000020\n"
    check_same_run(tmp_path / "run", trained_run)
    padding = "; 11.1% of what is computed is padding" if size == 3 else ""
    assert f"in 1 × {-(-16 // size)}{padding}\n" in ended.errors
    last = last_checkpoint(tmp_path / "run")
    verify_checkpoint(last)
    files = {f"model-{n:05d}-of-{size:05d}.safetensors" for n in range(1, size + 1)}
    assert {path.name for path in last.glob("model*.safetensors")} == files
    # Whoever reads it gets the same weights: transformers, and a process that has all of them.
    model = AutoModelForCausalLM.from_pretrained(last, dtype=torch.float32).state_dict()
    own, _ = load_model(read_architecture(last), last)
    for name, parameter in own.named_parameters():
        in_transformers = model[name.replace("embed_out", "lm_head")]
        assert torch.equal(parameter, in_transformers), name


def test_a_stop_of_one_rank_stops_all_and_resumes_to_the_same_bytes(recipe, tmp_path):
    shard = ("--set", "parallel.shard=all")
    assert train(tmp_path, 2, recipe, "straight", *shard).codes == [0, 0]
    fault = process_group.terminate_in_step_7
    stopped = train(tmp_path, 2, recipe, "run", *shard, fault=fault)
    assert stopped.codes == [75, 75]
    assert "SIGTERM: stopped after step 7, saved in" in stopped.errors
    assert train(tmp_path, 2, recipe, "run", *shard, "--resume").codes == [0, 0]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")
    one, other = (last_checkpoint(tmp_path / name) for name in ("run", "straight"))
    for path in one.iterdir():
        if path.name not in ("recipe.yaml", "MANIFEST.json"):
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_continues_on_another_number_of_processes(recipe, tmp_path, trained_run, size):
    fault = process_group.interrupt_in_step_7
    stopped = train(tmp_path, 4, recipe, "run", "--set", "parallel.shard=2", fault=fault)
    assert stopped.codes == [130] * 4
    shard = "1" if size == 3 else "all"
    resumed = train(tmp_path, size, recipe, "run", "--resume", "--set", f"parallel.shard={shard}")
    assert resumed.codes == [0] * size
    assert f"warning: processes: {size} now, 4 before" in resumed.errors
    check_same_run(tmp_path / "run", trained_run)


@pytest.mark.parametrize(
    ("precision", "memory", "tolerance"),
    [("bf16", "lean", 2e-3), ("fp16", "fast", 2e-3), ("fp8", "fast", 2e-2)],
)
def test_other_precisions_on_several_processes(recipe, tmp_path, precision, memory, tolerance):
    settings = ("--set", f"precision={precision}", "--set", f"memory={memory}")
    assert train(tmp_path, 1, recipe, "one", *settings).codes == [0]
    shard = ("--set", "parallel.shard=all")
    assert train(tmp_path, 2, recipe, "run", *settings, *shard).codes == [0, 0]
    check_same_run(tmp_path / "run", tmp_path / "one", tolerance)


@pytest.mark.parametrize(
    ("fault", "rank", "code", "message", "step"),
    [
        (
            "missing_shard",
            1,
            3,
            "error: rank 1: shard-00007.tar is missing; everything up to",
            None,
        ),
        ("missing_validation_shard", 1, 3, "error: rank 1: shard-00003.tar is missing", 5),
        ("cannot_write_metrics", 0, 3, "error: metrics.jsonl cannot be written", 9),
        ("cannot_flush_metrics_at_the_end", 0, 3, "error: metrics.jsonl cannot be written", 20),
        ("loss_is_nan_from_step_12", 1, 4, "steps 12 to 14 were not finite", 10),
        ("full_disk", 1, 3, "rank 1: [Errno 28] No space left on device", None),
    ],
)
def test_a_fault_of_one_rank_ends_all_with_its_exit_code(
    recipe, tmp_path, fault, rank, code, message, step
):
    ended = train(
        tmp_path, 2, recipe, "run", fault=getattr(process_group, fault), rank_of_fault=rank
    )
    assert ended.codes == [code, code]
    assert message in ended.errors
    checkpoints = list_checkpoints(tmp_path / "run")
    assert sum(line.startswith("error: ") for line in ended.errors.splitlines()) == 1
    if fault == "full_disk":
        assert not checkpoints
    elif step:
        assert max(checkpoints) == step
    for checkpoint in checkpoints.values():
        verify_checkpoint(checkpoint)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill_in_step_12", "rank 1 was last seen at the data after step 11: it was killed, or"),
        ("hang_in_step_12", "rank 1 was last seen at the data after step 11: it was killed, or"),
        ("out_of_memory_in_step_12", "rank 1 failed: out of memory on the device: 2 GiB"),
    ],
)
def test_a_rank_that_is_lost_is_named_and_the_last_checkpoint_counts(
    recipe, tmp_path, fault, message
):
    timeout = ("--set", "parallel.timeout_minutes=0.1")
    with started_processes(
        tmp_path / "processes", 2, "train", recipe, *timeout,
        fault=getattr(process_group, fault),
    ) as processes:  # fmt: skip
        assert processes[0].wait(120) == 1
        assert message in processes[0].errors
        assert "everything up to step 10 is saved" in processes[0].errors
    assert list(list_checkpoints(tmp_path / "run")) == [10]
    resumed = train(tmp_path, 2, recipe, "run", "--resume")
    assert resumed.codes == [0, 0]


def test_a_batch_that_is_too_small_and_a_shard_that_does_not_divide_are_refused(recipe, tmp_path):
    words = ("--set", "batch={tokens: 64, microbatch: 1}", "--set", "tokens=640")
    ended = train(tmp_path, 2, recipe, "run", *words)
    assert ended.codes == [2, 2]
    assert "64 are 1 sequences of 64 tokens, fewer than 2 GPUs" in ended.errors
    ended = train(tmp_path, 3, recipe, "run", "--set", "parallel.shard=2")
    assert ended.codes == [2, 2, 2]
    assert "parallel.shard: 2 does not divide 3 GPUs; try one of 1, 3, or all" in ended.errors
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_stop_in_an_evaluation_saves_the_divided_weights(recipe, tmp_path, trained_run):
    fault = process_group.terminate_in_evaluation_3
    shard = ("--set", "parallel.shard=all")
    stopped = train(tmp_path, 2, recipe, "run", *shard, fault=fault)
    assert stopped.codes == [75, 75]
    assert "stopped after step 5, saved in" in stopped.errors
    assert "its evaluation was stopped and will be repeated" in stopped.errors
    assert train(tmp_path, 2, recipe, "run", *shard, "--resume").codes == [0, 0]
    check_same_run(tmp_path / "run", trained_run)


def test_a_restart_continues_after_the_last_checkpoint_whatever_was_resumed_from(recipe, tmp_path):
    assert train(tmp_path, 2, recipe, "run").codes == [0, 0]
    restarted = train(tmp_path, 2, recipe, "run", "--resume-from", 10, restarts=1)
    assert restarted.codes == [0, 0]
    assert "complete: step 20 of 20 is saved" in restarted.errors
    assert list(list_checkpoints(tmp_path / "run")) == [10, 20]


def test_average_z_loss_and_norms_of_divided_weights_are_those_of_one_process(
    recipe, recipe_text, tmp_path
):
    words = ("optimizer.ema={decay: 0.8}", "optimizer.z_loss=0.01", "every.norms=6")
    run(
        recipe_text,
        tmp_path / "alone",
        **{k.replace(".", "__"): v for k, _, v in (word.partition("=") for word in words)},
    )
    sets = [part for word in ("parallel.shard=all", *words) for part in ("--set", word)]
    fault = process_group.terminate_in_step_7
    assert train(tmp_path, 2, recipe, "run", *sets, fault=fault).codes == [75, 75]
    assert train(tmp_path, 2, recipe, "run", "--resume", *sets).codes == [0, 0]
    alone, shared = (metrics(tmp_path / name) for name in ("alone", "run"))
    assert [line["step"] for line in shared if line["kind"] == "norms"] == [6, 12, 18]
    for line, expected in zip(shared, alone, strict=True):
        assert line.keys() == expected.keys()
        for name, value in line.items():
            if "_norm" in name or name.endswith("_loss"):
                assert value == pytest.approx(expected[name], rel=2e-4, abs=1e-6), name
    folders = [last_checkpoint(tmp_path / name) / "ema" for name in ("alone", "run")]
    verify_checkpoint(folders[1])
    weights = [load_model(read_architecture(folder), folder)[0].state_dict() for folder in folders]
    for name, expected in weights[0].items():
        # The gradient of a key's bias is rounding alone, of which Adam makes whole steps.
        if not name.endswith("query_key_value.bias"):
            torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=1e-4)
