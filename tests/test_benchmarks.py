"""The benchmarks, as far as they run on a machine without a GPU."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import audit
import communication_model
import install_size
import pytest
import shared_cache
import training_step as step
import training_step_arms as arms
from repository import ROOT

from rewarm.model.attention_backend import BACKENDS

TINY = ["--model", "tiny", "--microbatch", "2", "--context", "32", "--steps", "2"]


def run(*arguments):
    """Runs training_step.py with one thread: on a busy machine two wait long for each other."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "training_step.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert not ended.returncode, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.benchmark
def test_training_step_runs_rewarm_and_every_installed_peer(tmp_path):
    json_path, markdown_path = tmp_path / "step.json", tmp_path / "step.md"
    output = run(*TINY, "--precision", "fp32", "--repeats", "2", "--no-first-step", "--profile",
               "--json", str(json_path), "--markdown", str(markdown_path))  # fmt: skip
    assert output == markdown_path.read_text()
    results = json.loads(json_path.read_text())
    assert not results["failed"]
    installed = [name for name in ("litgpt", "transformers") if find_spec(name)]
    assert list(results["arms"]) == ["rewarm", *installed]
    losses = []
    for arm in results["arms"].values():
        assert len(arm["turns"]) == 2
        assert arm["cold"]["note"] == "flash attention"
        assert all(turn["step_s"] > 0 and turn["peak_bytes"] > 0 for turn in arm["turns"])
        assert set(arm["profile"]) == {*arms.FAMILIES, "other", "idle"}
        for family in ("matmuls", "attention", "norms", "GELU", "cross-entropy"):
            assert arm["profile"][family] > 0, family
        losses.append([loss for turn in arm["turns"] for loss in turn["loss"]])
    for other in losses:  # all arms do the same work
        assert other == pytest.approx(losses[0], abs=1e-4)
    assert results["host_synchronizations"] == {"error": None, "checked": False}
    assert results["overheads"]["tokens_per_s"] > 0
    assert 0 <= results["overheads"]["data_wait"] < 1
    assert "`rewarm train`, a log line every 10 steps" in output


@pytest.mark.slow
@pytest.mark.benchmark
def test_attention_backends_are_compared(tmp_path):
    json_path = tmp_path / "step.json"
    output = run(*TINY, "--precision", "fp16", "--repeats", "1", "--no-first-step",
                 "--no-overheads", "--peers", "rewarm flash,rewarm math",
                 "--json", str(json_path))  # fmt: skip
    arms = json.loads(json_path.read_text())["arms"]
    assert {name: arm["cold"]["note"] for name, arm in arms.items()} == {
        "rewarm": "flash attention",
        "rewarm flash": "flash attention",
        "rewarm math": "math attention",
    }
    assert "rewarm math: math attention" in output
    losses = [arm["turns"][0]["loss"] for arm in arms.values()]
    assert losses[0] == losses[1] != losses[2]
    assert losses[2] == pytest.approx(losses[0], abs=1e-2)


def test_arms_of_attention_backends_are_those_of_rewarm():
    assert tuple(BACKENDS) == arms.ATTENTION_BACKENDS


@pytest.mark.slow
@pytest.mark.benchmark
def test_first_step_is_measured_with_cold_and_warm_cache_and_peers_are_optional(tmp_path):
    json_path = tmp_path / "step.json"
    run(*TINY, "--repeats", "1", "--peers", "", "--no-overheads", "--json", str(json_path))
    results = json.loads(json_path.read_text())
    (arm,) = results["arms"].values()
    for start in (arm["cold"], arm["warm"]):
        assert 0 < start["first_step_s"] < start["from_start_s"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matmuls"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmuls"),
        ("aten::addmm", "matmuls"),
        ("aten::_scaled_mm", "matmuls"),
        ("_round", "rounding to fp8"),
        ("rewarm::round8", "rounding to fp8"),
        ("aten::round", None),
        ("aten::convolution_backward", "matmuls"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention)", "attention"),
        ("triton_poi_fused_gelu_gelu_backward_3", "GELU"),
        ("triton_per_fused_native_layer_norm_native_layer_norm_backward_1", "norms"),
        ("rewarm::norms_forward", "norms"),
        ("triton_poi_fused__to_copy_cat_mul_2", "rotary"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<>", "rotary"),
        ("rewarm::rotary_backward", "rotary"),
        ("void (anonymous namespace)::cunn_SoftMaxForward<8, float, float>", "cross-entropy"),
        ("aten::nll_loss_backward", "cross-entropy"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("aten::linalg_vector_norm", "optimizer"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("triton_poi_fused_add_0", None),
        ("aten::concatenate_nothing", None),
    ],
)
def test_kernel_family_is_found_by_name(name, family):
    assert arms.family_of(name) == family


def event(name, device="CPU", microseconds=0.0, kernels=(), parent=None, annotation=False):
    return SimpleNamespace(
        name=name,
        device_type=f"DeviceType.{device}",
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
        cpu_parent=parent,
        is_user_annotation=annotation,
        self_cpu_time_total=microseconds,
    )


def test_kernel_without_known_name_counts_for_its_operator():
    outer = event("Optimizer.step#AdamW.step")
    events = [
        event("aten::add_", kernels=[("vectorized_elementwise_kernel", 3.0)], parent=outer),
        event("aten::add_", kernels=[("vectorized_elementwise_kernel", 2.0)]),
        event("vectorized_elementwise_kernel", "CUDA", 3.0),
        event("vectorized_elementwise_kernel", "CUDA", 2.0),
        event("flash_fwd_kernel", "CUDA", 7.0),  # launched by no operator, as from a CUDA graph
        event("Memcpy HtoD (Pinned -> Device)", "CUDA", 50.0),
        event("Optimizer.step#AdamW.step", "CUDA", 60.0, annotation=True),
    ]
    spent = arms.by_family(events, on_gpu=True)
    assert spent == {"optimizer": 3.0, "other": 2.0, "attention": 7.0}


def test_table_counts_flops_as_palm_does():
    turns = [{"step_s": seconds, "peak_bytes": 2e9, "loss": [3.0]} for seconds in (0.2, 0.1, 0.3)]
    cold = {"first_step_s": 9.0, "from_start_s": 12.0, "loss": [4.0], "note": ""}
    settings = {"model": "pythia-410m", "microbatch": 16, "context": 2048, "precision": "bf16",
                "kernels": "auto", "memory": "fast", "deterministic": False,
                "steps": 1, "repeats": 3}  # fmt: skip
    arm = {"cold": cold, "warm": None, "turns": turns, "profile": None}
    overheads = {"tokens_per_s": 163_840.0, "data_wait": 0.001, "evaluation_s": 1.0,
              "evaluation_tokens": 131_072}  # fmt: skip
    text = step.format_results(
        {
            "settings": settings,
            "machine": {"device": "NVIDIA H100 80GB HBM3"},
            "arms": {"rewarm": arm},
            "missing": ["litgpt"],
            "failed": {"transformers": "ended: out of memory"},
            "host_synchronizations": {"error": None, "checked": True},
            "overheads": overheads,
            "stopped": True,
        }
    )
    # 32,768 tokens in 0.2 s; 6 · 353,822,720 + 12 · 24 · 1024 · 2048 FLOPs each; 989.4 TFLOP/s.
    assert "| 163,840 (109,227 to 327,680) |" in text
    mfu = 163_840 * (6 * 353_822_720 + 12 * 24 * 1024 * 2048) / 989.4e12
    assert f"| {100 * mfu:.1f} (" in text
    assert "4.0000 → 3.0000" in text
    assert "Not importable here: litgpt." in text
    assert "transformers failed: ended: out of memory" in text
    assert "none in take_step" in text
    assert "Stopped: " in text
    assert "+0.00% of the step's time" in text


def test_communication_model_in_the_documentation_is_what_the_script_prints():
    table = communication_model.table()
    page = (ROOT / "docs" / "multi-gpu.md").read_text()
    section = page.partition("## Communication, as a model")[2].partition("\n## ")[0]
    assert f"\n{table}\n" in section
    assert len(table.splitlines()) == 2 + 3 * 2 + 2 * 3 * 3


def test_communication_model_by_hand():
    step = communication_model.fastest_step(communication_model.Setting(512, "pythia-410m", 1))
    assert (step.split.parts, step.split.microbatch) == (1, 3)
    assert step.computing == pytest.approx(3 * 2048 / 174_000)
    # 2 · 4 bytes of 405,334,016 gradients through 8 cards of 45 GB/s; 25 all-reduces of 2 · 7 steps
    # in a node and 2 · 6 between 64 nodes.
    expected = 8 * 405_334_016 * 511 / 512 / 360e9 + 25 * (14 * 3.4e-6 + 12 * 14e-6)
    assert step.communication.seconds == pytest.approx(expected)
    assert step.communication_share == pytest.approx(expected / (expected + step.computing))
    assert step.exposed_share == 0.0
    assert communication_model.fastest_step(communication_model.Setting(8, "pythia-12b", 1)) is None


def test_every_stage_of_gpu_script_calls_valid_commands(tmp_path):
    copy = tmp_path / "benchmarks" / "gpu.sh"  # with no wheels beside it
    copy.parent.mkdir()
    copy.write_text((ROOT / "benchmarks" / "gpu.sh").read_text())
    stub = tmp_path / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\t" "$@" >>"$CALLS"; echo >>"$CALLS"\n')
    stub.chmod(0o755)
    stages = "tests 410m sizes widths kernels attention fp8 losses memory"
    for stage in stages.split():
        calls, out = tmp_path / stage, tmp_path / "out" / stage
        search = f"{stub.parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": search, "CALLS": str(calls), "OUT": str(out)}
        subprocess.run(["bash", str(copy), stage], env=environment, check=True)
        assert len(list(out.iterdir())) <= 8  # a machine may return no more
        for line in calls.read_text().splitlines():
            for path in re.findall(r"(?:tests|benchmarks)/[\w/]+\.py", line):
                assert (ROOT / path).is_file(), path
            if line.startswith("benchmarks/training_step.py\t"):
                step.requested_arms(step.arguments().parse_args(line.split("\t")[1:-1]))
    unknown = subprocess.run(["bash", str(copy)], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "pytest -m gpu" in unknown.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_names_imported_from_rewarm_exist(script):
    tree = ast.parse(script.read_text())
    for node in ast.walk(tree):  # also the deferred imports, which --help would not reach
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "rewarm":
            module = import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    import_module(f"{node.module}.{name.name}")


@pytest.mark.slow
def test_two_processes_share_a_cache_of_two_shards(corpora):
    """Some accesses of `benchmarks/shared_cache.py`, which makes thousands."""
    folder = corpora / "upstream" / "train"
    outcome = shared_cache.run_tries(folder, tries=2, accesses=40, kill=False, seed=1)
    assert (outcome.accesses, outcome.problems, outcome.leftovers) == (160, {}, [])
    assert outcome.downloads > len(list(folder.glob("*.tar")))


@pytest.mark.slow
@pytest.mark.benchmark
def test_eval_beside_a_run_that_deletes_checkpoints():
    """One try of `benchmarks/eval_beside_pruning.py`, which measures hundreds of checkpoints."""
    words = [
        str(ROOT / "benchmarks" / "eval_beside_pruning.py"),
        "--tries",
        "1",
        "--tokens",
        "51200",
    ]
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert "; 0 problems" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
def test_damaged_inputs_are_read_whole_or_refused(capsys):
    """A small part of the campaign: 60 truncations and bit flips of each format."""
    damaged_inputs = import_module("damaged_inputs")
    assert damaged_inputs.main(["--cases", "60"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len([row for row in rows if row.startswith("| ")]) == 23


@pytest.mark.slow
def test_two_shard_commands_on_one_folder_corrupt_nothing():
    command = [sys.executable, str(ROOT / "benchmarks" / "two_shard_commands.py"), "--tries", "3"]
    command += ["--documents", "300"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stderr
    assert "3 tries: what was written was always that of one command alone" in ended.stdout


@pytest.mark.slow
@pytest.mark.benchmark
def test_faults_of_a_study(capsys):
    """One fault of `benchmarks/study_faults.py`, which injects ten."""
    import_module("study_faults").main(["15", "18"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 15")]
    first, second = ([cell.strip() for cell in row.split("|")[2:-1]] for row in rows)
    assert first == ["1", "0", "a/18  done", "a", "a/17 (1), a/18 (1)"]
    assert second[2].startswith("a/18  done  loss ")
    assert [*second[:2], *second[3:]] == ["2", "0", "a", "none"]


@pytest.mark.slow
def test_the_audit_agrees_in_rates_losses_norms_and_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "CURVES", {"clipped-cosine": audit.CURVES["clipped-cosine"]})
    schedules = list(audit.audit_schedules(steps=1000))
    losses, norms, weights, change = audit.audit_updates(tmp_path, steps=2)
    for line, least in (*((line, 13) for line in schedules), (losses, 6), (norms, 6), (weights, 5)):
        assert float(re.search(r"([\d.]+) digits", line)[1]) >= least, line
    assert float(re.search(r"([\d.]+) digits", change)[1]) >= 2.5, change


def test_the_audit_judges_claims_by_itself(tmp_path):
    for seed in (1, 2, 3):
        for arm, ends in (("a", 2.0), ("b", 3.0)):
            (tmp_path / arm / str(seed)).mkdir(parents=True)
            losses = [5.0, 4.0, ends + 0.1 * seed]
            lines = ({"tokens": 10 * i, "x/loss": loss} for i, loss in enumerate(losses))
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / arm / str(seed) / "metrics.jsonl").write_text(text)

    def verdict(claim):
        return audit.verdict_of(tmp_path, claim, [1, 2, 3])

    assert verdict("final(x, a) < 2.6")[0] == "held"
    assert verdict("final(x, a) < 2.6")[1:] == pytest.approx((-0.4, -0.648414, -0.151586), abs=1e-6)
    assert verdict("final(x, a) > 50% * final(x, b)")[0] == "held"
    assert verdict("final(x, a, first 50%) < 3")[0] == "not held"
    assert verdict("overtakes(b, a, x) after 10%")[0] == "not held"
    assert verdict("abs(gap(x, a, b, after 60%) - 1) < 0.1")[0] == "held"


def test_import_time_and_help_are_measured():
    python = Path(sys.executable)
    assert 0 < install_size.import_ms(python, "rewarm") < 60_000
    seconds, cpu_seconds = install_size.help_seconds(python.with_name("rewarm"))
    assert 0 < cpu_seconds < 60
    assert seconds > 0
    with pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
        install_size.import_ms(python, "no_such_module")


def test_a_row_of_install_sizes_has_a_cell_for_each_column():
    sizes = dict.fromkeys(("download_bytes", "bytes", "bytes_without_torch"), 2_000_000)
    times = {"install_seconds": 3.0, "import_ms": [1.0, 3.0], "help_seconds": [(1.0, 0.5)]}
    row = install_size.cells(
        {"tool": "x 1", "torch": None, "direct": 4, "packages": 9} | sizes | times
    )
    assert len(row) == len(install_size.COLUMNS)
    assert row[:4] == ["x 1", "4", "9", "2 MB"]
    assert row[-3:] == ["2 (1 to 3) ms", "1.00 (1.00 to 1.00) s", "0.50 (0.50 to 0.50) s"]
