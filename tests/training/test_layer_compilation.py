"""Layers are compiled, or run eagerly with a warning where the compiler fails."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_models import TINY, same_tensors, tiny_model

from rewarm.model.neox import NeoX
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass

COMPILE_IN_A_NEW_PROCESS = """
from functools import partial
import torch
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass
from rewarm.model.architecture import Architecture
from rewarm.training.device_setup import autocast
from rewarm.model.neox import NeoX, initialize_weights

model = NeoX(Architecture(layers=2, hidden=32, heads=2, vocabulary=64, positions=16))
initialize_weights(model, 3)
tokens = torch.arange(32).reshape(2, 16)
before = model.loss(tokens, tokens)
cast = autocast("fp32", torch.device("cpu"))
attempt = partial(run_trial_pass, model, microbatch=2, context=16, cast=cast)
for line in compile_or_run_eagerly(model, attempt):
    print(line)
print(torch.equal(before, model.loss(tokens, tokens)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["/nowhere/c++", "/bin/false"])
def test_a_compiler_that_is_missing_or_fails_is_a_warning(tmp_path, compiler):
    broken = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE_IN_A_NEW_PROCESS], capture_output=True, text=True,
        check=False, env={**os.environ, **broken},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    warning, same_loss = ended.stdout.splitlines()
    assert warning.startswith("warning: the layers cannot be compiled and run one operation at a")
    assert "set compile: false" in warning
    assert len(warning) < 450
    assert same_loss == "True"
    assert "Traceback" not in ended.stderr


def test_an_error_that_is_not_the_compilers_is_raised():
    def attempt():
        raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        compile_or_run_eagerly(NeoX(TINY), attempt)


def test_layers_that_compile_stay_compiled():
    model, attempts = tiny_model(), []
    assert compile_or_run_eagerly(model, lambda: attempts.append(1)) == []
    assert len(attempts) == 1
    assert all(layer._compiled_call_impl for layer in model.gpt_neox.layers)


def test_a_trial_pass_changes_no_weight_and_leaves_no_gradient():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cast = torch.autocast("cpu", enabled=False)
    run_trial_pass(model, microbatch=2, context=16, cast=cast, separator_id=0, parts=2)
    assert same_tensors(before, model.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
