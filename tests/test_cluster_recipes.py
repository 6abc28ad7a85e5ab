"""recipes/slurm and recipes/kubernetes, with a fake srun and scontrol; see docs/multi-gpu.md."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from repository import ROOT

from rewarm import exit_codes
from rewarm.cli.app import app

SCRIPTS = sorted((ROOT / "recipes" / "slurm").glob("*.sbatch"))
JOB = ROOT / "recipes" / "kubernetes" / "job.yaml"
scripts = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)

SRUN = """\
#!{python}
# Like srun: runs a process for each task, forwards signals, returns the highest exit code.
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = int(os.environ["SLURM_NTASKS"])
processes = [
    subprocess.Popen(words, env=os.environ | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(tasks)
]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda received, _: [p.send_signal(received) for p in processes])
codes = [process.wait() for process in processes]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """\
#!/bin/sh
case "$1" in
show) printf 'node-1\\nnode-2\\n' ;;
*) echo "$*" >>{calls} ;;
esac
"""
TRAINER = """\
#!{python}
# In the place of rewarm: writes what it was started with, and exits as the test says.
import json, os, signal, sys, time
got = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda received, _: got.append(signal.Signals(received).name))
ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
path = "{folder}/trainer-" + os.environ["SLURM_PROCID"]
state = {{"words": sys.argv[1:], "ranks": {{r: os.environ[r] for r in ranks if r in os.environ}}}}
def write():
    with open(path + ".partial", "w") as file:
        json.dump(state | {{"signals": got}}, file)
    os.rename(path + ".partial", path)
write()
for _ in range(600):
    if got or os.environ["WAITS"] == "no":
        break
    time.sleep(0.05)
time.sleep(0.2 * int(os.environ["SLURM_PROCID"]))  # processes end one after the other
write()
sys.exit(int(os.environ["CODE"]))
"""


class Job:
    """A batch script that runs with fake commands of Slurm, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.calls = folder, folder / "bin", folder / "scontrol-calls"
        self.processes: list[subprocess.Popen] = []
        self.bin.mkdir()
        self.write_command("srun", SRUN)
        self.write_command("scontrol", SCONTROL)

    def write_command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text.format(python=sys.executable, folder=self.folder, calls=self.calls))
        path.chmod(0o755)

    def start(self, script: Path, *words: object, tasks: int = 1, **environment: str):
        slurm = {
            "SLURM_JOB_ID": "4217",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_NTASKS": str(tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
            "SLURM_CPUS_PER_TASK": "1",
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        process = subprocess.Popen(
            ["bash", script, *map(str, words)],
            env=os.environ | slurm | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def trainers(self, count: int) -> list[dict]:
        return [json.loads((self.folder / f"trainer-{i}").read_text()) for i in range(count)]

    @property
    def requeues(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    job = Job(folder)
    yield job
    for process in job.processes:
        if process.poll() is None:  # the test failed
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def fake_job(job):
    job.write_command("rewarm", TRAINER)
    return job


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@scripts
@pytest.mark.parametrize(
    ("number", "code", "requeues"),
    [
        (signal.SIGUSR1, 75, ["requeue 4217"]),  # stopped before the time limit
        (signal.SIGUSR1, 1, ["requeue 4217"]),  # the same below torchrun
        (signal.SIGUSR1, 0, []),  # it was complete
        (signal.SIGTERM, 75, []),  # scancel; Slurm itself requeues a preempted job
    ],
)
def test_signals_reach_training_and_decide_on_a_requeue(fake_job, script, number, code, requeues):
    process = fake_job.start(script, "r.yaml", tasks=2, CODE=str(code), WAITS="yes")
    wait_for(lambda: all((fake_job.folder / f"trainer-{i}").exists() for i in range(2)), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert fake_job.requeues == requeues
    assert [trainer["signals"] for trainer in fake_job.trainers(2)] == [[number.name]] * 2


@scripts
@pytest.mark.parametrize("code", [0, 1, 4, 75])
def test_without_a_signal_nothing_is_requeued(fake_job, script, code):
    process = fake_job.start(script, "r.yaml", CODE=str(code), WAITS="no")
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, fake_job.requeues) == (code, []), output


@scripts
def test_options_follow_the_recipe(fake_job, script):
    process = fake_job.start(script, "a b.yaml", "--set", "seed=2", CODE="0", WAITS="no")
    process.communicate(timeout=60)
    (trainer,) = fake_job.trainers(1)
    assert trainer["words"] == ["train", "a b.yaml", "--resume", "--set", "seed=2"]


@scripts
def test_a_recipe_is_required(fake_job, script):
    process = fake_job.start(script)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"usage: sbatch {script.name} recipe.yaml" in output


def test_each_process_of_several_nodes_knows_its_rank(fake_job):
    script = ROOT / "recipes" / "slurm" / "several-nodes.sbatch"
    fake_job.start(script, "r.yaml", tasks=3, CODE="0", WAITS="no").communicate(timeout=60)
    shared = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "node-1"}
    assert [trainer["ranks"] for trainer in fake_job.trainers(3)] == [
        {"RANK": str(i), "LOCAL_RANK": str(i), "MASTER_PORT": "24217"} | shared for i in range(3)
    ]


@pytest.mark.slow
@scripts
def test_a_stopped_run_is_requeued_and_then_complete(job, script, recipe_file, tmp_path):
    settings = ("tokens=409600", "every.save=1000", "data.max_epochs=null")
    words = (recipe_file, *(f"--set={setting}" for setting in settings))
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = job.start(script, *words)
    wait_for(lambda: metrics.exists() and '"train"' in metrics.read_text(), process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert job.requeues == ["requeue 4217"]
    (stopped,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert 0 < int(stopped.name.removeprefix("step-")) < 400

    for _ in range(2):  # the requeued job; and once more, when nothing is left to do
        process = job.start(script, *words)
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert (tmp_path / "run" / "checkpoints" / "step-00000400").is_dir()
    assert job.requeues == ["requeue 4217"]


@scripts
def test_the_directives_of_sbatch(script):
    lines = script.read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= set(options)
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH "))
    assert last < first_command  # sbatch reads none after it


def test_the_command_of_the_kubernetes_job_is_valid():
    job = yaml.safe_load(JOB.read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][0] == "rewarm"
    subcommand, *words = container["command"][1:]
    command = typer.main.get_command(app).commands[subcommand]
    assert command.make_context(subcommand, words).params["resume"] is True
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_kubernetes_job_distinguishes_the_exit_codes():
    job = yaml.safe_load(JOB.read_text())["spec"]
    rules = [rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
    assert actions == {
        exit_codes.BAD_RECIPE: "FailJob",
        exit_codes.UNUSABLE_INPUT: "FailJob",
        exit_codes.DIVERGED: "FailJob",
        exit_codes.STOPPED: "Ignore",
    }
    assert job["template"]["spec"]["restartPolicy"] == "Never"
