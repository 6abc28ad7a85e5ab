"""Triton's interpreter, which runs the kernels on a CPU: see tests/helpers/interpreted.py."""

import os

import pytest

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    if IS_INTERPRETED:  # Triton 3.6 converts arrays in a way that numpy 2.3 warns of
        ignored = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
        for item in items:
            item.add_marker(ignored)


@pytest.fixture(autouse=True)
def _correct_fp8_rounding(monkeypatch):
    """Corrects how the interpreter rounds to fp8."""
    if IS_INTERPRETED:
        import interpreter_rounding
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter, "_convert_float", interpreter_rounding.rounding())


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Starts so few programs that each loops over several rows, as on a GPU with its many rows."""
    if IS_INTERPRETED:
        from rewarm.model.kernels import gelu, layer_norm, rotary

        for module in (rotary, layer_norm, gelu):
            monkeypatch.setattr(module, "MULTIPROCESSORS", 1)
