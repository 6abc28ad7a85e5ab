"""benchmarks/ as far as a machine without a GPU can run them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import training_step_arms as arms
import pytest
import training_step as step
from repository import ROOT

TINY = ["--model", "tiny", "--microbatch", "2", "--context", "32", "--steps", "2"]


def run(*arguments):
    """Runs step.py; one thread, for two wait long for each other on a busy machine."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "training_step.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert not ended.returncode, ended.stderr
    return ended.stdout


def test_the_step_beside_every_peer_that_is_here(tmp_path):
    found, text = tmp_path / "step.json", tmp_path / "step.md"
    said = run(*TINY, "--precision", "fp32", "--repeats", "2", "--no-first-step", "--profile",
               "--json", str(found), "--markdown", str(text))  # fmt: skip
    assert said == text.read_text()
    told = json.loads(found.read_text())
    assert not told["failed"]
    here = [name for name in ("litgpt", "transformers") if find_spec(name)]
    assert list(told["arms"]) == ["rewarm", *here]
    losses = []
    for arm in told["arms"].values():
        assert len(arm["turns"]) == 2
        assert all(turn["step_s"] > 0 and turn["peak_bytes"] > 0 for turn in arm["turns"])
        assert set(arm["profile"]) == {*arms.FAMILIES, "other", "idle"}
        for family in ("matrix products", "attention", "norms", "GELU", "cross-entropy"):
            assert arm["profile"][family] > 0, family
        losses.append([loss for turn in arm["turns"] for loss in turn["loss"]])
    for other in losses:  # the same work
        assert other == pytest.approx(losses[0], abs=1e-4)
    assert told["synchronisations"] == {"complaint": None, "checked": False}
    assert told["overheads"]["tokens_per_s"] > 0
    assert 0 <= told["overheads"]["data_wait"] < 1
    assert "`rewarm train`, a log line every 10 steps" in said


def test_the_first_step_is_taken_with_a_cold_and_with_a_warm_cache_and_peers_are_optional(tmp_path):
    found = tmp_path / "step.json"
    run(*TINY, "--repeats", "1", "--peers", "", "--no-overheads", "--json", str(found))
    told = json.loads(found.read_text())
    (arm,) = told["arms"].values()
    for one in (arm["cold"], arm["warm"]):
        assert 0 < one["first_step_s"] < one["from_start_s"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_mm", "matrix products"),
        ("_round", "rounding to fp8"),
        ("rewarm::round8", "rounding to fp8"),
        ("aten::round", None),
        ("aten::convolution_backward", "matrix products"),
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
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("aten::linalg_vector_norm", "optimiser"),
        ("Optimizer.step#AdamW.step", "optimiser"),
        ("triton_poi_fused_add_0", None),
        ("aten::concatenate_nothing", None),
    ],
)
def test_kernels_are_told_by_their_names(name, family):
    assert arms.family_of(name) == family


def event(name, device="CPU", microseconds=0.0, kernels=(), around=None, annotation=False):
    return SimpleNamespace(
        name=name,
        device_type=f"DeviceType.{device}",
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        kernels=[SimpleNamespace(name=one, duration=took) for one, took in kernels],
        cpu_parent=around,
        is_user_annotation=annotation,
        self_cpu_time_total=microseconds,
    )


def test_a_kernel_without_a_telling_name_belongs_to_what_launched_it():
    outer = event("Optimizer.step#AdamW.step")
    events = [
        event("aten::add_", kernels=[("vectorized_elementwise_kernel", 3.0)], around=outer),
        event("aten::add_", kernels=[("vectorized_elementwise_kernel", 2.0)]),
        event("vectorized_elementwise_kernel", "CUDA", 3.0),
        event("vectorized_elementwise_kernel", "CUDA", 2.0),
        event("flash_fwd_kernel", "CUDA", 7.0),  # launched by nobody, as from a CUDA graph
        event("Memcpy HtoD (Pinned -> Device)", "CUDA", 50.0),
        event("Optimizer.step#AdamW.step", "CUDA", 60.0, annotation=True),
    ]
    spent = arms.by_family(events, on_gpu=True)
    assert spent == {"optimiser": 3.0, "other": 2.0, "attention": 7.0}


def test_the_table_counts_flops_as_palm_does():
    turns = [{"step_s": one, "peak_bytes": 2e9, "loss": [3.0]} for one in (0.2, 0.1, 0.3)]
    cold = {"first_step_s": 9.0, "from_start_s": 12.0, "loss": [4.0], "note": ""}
    settings = {"model": "pythia-410m", "microbatch": 16, "context": 2048, "precision": "bf16",
                "kernels": "auto", "memory": "fast", "deterministic": False,
                "steps": 1, "repeats": 3}  # fmt: skip
    arm = {"cold": cold, "warm": None, "turns": turns, "profile": None}
    beside = {"tokens_per_s": 163_840.0, "data_wait": 0.001, "evaluation_s": 1.0,
              "evaluation_tokens": 131_072}  # fmt: skip
    said = step.in_markdown(
        {
            "settings": settings,
            "machine": {"device": "NVIDIA H100 80GB HBM3"},
            "arms": {"rewarm": arm},
            "missing": ["litgpt"],
            "failed": {"transformers": "ended: out of memory"},
            "synchronisations": {"complaint": None, "checked": True},
            "overheads": beside,
            "stopped": True,
        }
    )
    # 32,768 tokens in 0.2 s; 6 · 353,822,720 + 12 · 24 · 1024 · 2048 FLOPs each; 989.4 TFLOP/s.
    assert "| 163,840 (109,227 to 327,680) |" in said
    mfu = 163_840 * (6 * 353_822_720 + 12 * 24 * 1024 * 2048) / 989.4e12
    assert f"| {100 * mfu:.1f} (" in said
    assert "4.0000 → 3.0000" in said
    assert "Not importable here: litgpt." in said
    assert "transformers failed: ended: out of memory" in said
    assert "none in take_step" in said
    assert "Stopped: " in said
    assert "+0.00% of the step's time" in said


def test_every_stage_of_the_gpu_script_is_a_command_that_step_takes(tmp_path):
    copy = tmp_path / "benchmarks" / "gpu.sh"  # beside which no wheels lie
    copy.parent.mkdir()
    copy.write_text((ROOT / "benchmarks" / "gpu.sh").read_text())
    stub = tmp_path / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\t" "$@" >>"$CALLS"; echo >>"$CALLS"\n')
    stub.chmod(0o755)
    for stage in ("tests", "410m", "sizes", "widths", "kernels", "fp8", "losses", "memory"):
        calls, out = tmp_path / stage, tmp_path / "out" / stage
        path = f"{stub.parent}:{os.environ['PATH']}"
        told = os.environ | {"PATH": path, "CALLS": str(calls), "OUT": str(out)}
        subprocess.run(["bash", str(copy), stage], env=told, check=True)
        assert len(list(out.iterdir())) <= 8  # more do not come back
        for line in calls.read_text().splitlines():
            if line.startswith("benchmarks/training_step.py\t"):
                step.wanted(step.arguments().parse_args(line.split("\t")[1:-1]))
    unknown = subprocess.run(["bash", str(copy)], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "pytest -m gpu" in unknown.stderr
