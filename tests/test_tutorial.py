"""Runs every command of docs/schedules.md: from an empty folder to a schedule that trains."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

TUTORIAL = ROOT / "docs" / "schedules.md"

# The same installation offline: no dependencies, and the hatchling of this environment.
PIP = (
    f"{sys.executable} -m pip install --quiet --disable-pip-version-check --no-deps "
    "--no-build-isolation --target site"
)


@pytest.fixture
def shell(tmp_path):
    """Runs a command line in an empty folder; returns its output, and fails unless it exits 0."""
    scripts = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "80",
    }

    def run(line: str) -> str:
        line = line.replace("pip install -e", PIP)
        process = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, f"{line}\n{process.stdout}\n{process.stderr}"
        return process.stdout + process.stderr

    return run


@pytest.mark.slow
def test_the_commands_of_the_tutorial_work(shell, tmp_path, recipe_text):
    tutorial = TUTORIAL.read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", tutorial, re.DOTALL)
    python = [text for kind, text in blocks if kind == "python"]
    files = re.findall(r"`(rewarm-staircase/\S+\.py)`", tutorial)
    (tmp_path / "rewarm-quickstart" / "recipes").mkdir(parents=True)
    (tmp_path / "rewarm-quickstart" / "recipes" / "rewarm.yaml").write_text(recipe_text)
    outputs = {}
    for kind, text in blocks:
        if kind == "python":
            path = tmp_path / files[python.index(text)]
            assert path.is_file()
            path.write_text(text)
            continue
        for line in text.strip().splitlines():
            outputs[line] = shell(line)
    assert outputs["rewarm schedules test staircase"].count("kept") == 10
    assert "7 passed" in outputs["python -m pytest rewarm-staircase"]
    assert "The number of stairs, all of the same length." in outputs["rewarm schedules staircase"]
    (plot,) = (output for line, output in outputs.items() if "plot-schedule" in line)
    assert "3e-4" in plot
    assert "3.75e-5" in plot
    (train,) = (line for line in outputs if line.startswith("rewarm train"))
    assert "schedule" not in outputs[train]
    last = tmp_path / "runs" / "staircase" / "checkpoints" / "step-00000020"
    weights = (last / "model.safetensors").read_bytes()
    assert '"name": "staircase"' in (last / "progress.json").read_text()
    shutil.rmtree(last)
    assert "resumes after step 15" in shell(f"{train} --resume")
    assert (last / "model.safetensors").read_bytes() == weights
    code = tmp_path / "site" / "rewarm_staircase.py"
    code.write_text(code.read_text().replace("2.0 **", "3.0 **"))
    shutil.rmtree(last)
    with pytest.raises(AssertionError, match="with the same settings, lr at 26 % of the run"):
        shell(f"{train} --resume")
