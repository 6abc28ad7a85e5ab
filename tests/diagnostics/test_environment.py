"""Which environment variables a report shows: none with a secret."""

import pytest

from rewarm.diagnostics.environment import Environment, examine_environment, relevant_variables


def test_relevant_variables_are_shown_and_others_are_not():
    environment = {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NCCL_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "8",
        "HF_HOME": "/data/hf",
        "SLURM_JOB_ID": "17",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": "/home/me",
        "SSH_CONNECTION": "10.0.0.1",
        "SLURM_JOB_USER": "me",
    }
    shown = relevant_variables(environment)
    assert list(shown) == [
        *("CUDA_VISIBLE_DEVICES", "HF_HOME", "NCCL_SOCKET_IFNAME"),
        *("OMP_NUM_THREADS", "SLURM_JOB_ID", "TOKENIZERS_PARALLELISM"),
    ]
    assert shown["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_TOKEN", "TORCH_API_KEY", "REWARM_PASSWORD", "FI_SECRET"],
)
def test_secrets_are_never_shown(name):
    assert relevant_variables({name: "hf_abcdef"}) == {name: "(set, not shown)"}
    assert relevant_variables({"AWS_SECRET_ACCESS_KEY": "x", "SLURM_JWT": "x"}) == {}


def test_credentials_in_urls_and_control_characters_are_hidden():
    shown = relevant_variables({"HF_ENDPOINT": "https://me:secret@host/x", "NCCL_X": "a\x1b[2Jb"})
    assert shown == {"HF_ENDPOINT": "https://***@host/x", "NCCL_X": "a\\x1b[2Jb"}


def test_long_values_are_shortened():
    assert (
        relevant_variables({"LD_LIBRARY_PATH": "x" * 900})["LD_LIBRARY_PATH"] == "x" * 200 + "..."
    )


def test_paths_are_lists():
    variables = {"LD_LIBRARY_PATH": "/a:/b", "HF_ENDPOINT": "https://host"}
    facts = Environment(variables, ["eth0", "ib0"]).facts()
    assert facts == {
        "network": "eth0, ib0",
        "LD_LIBRARY_PATH": "/a, /b",
        "HF_ENDPOINT": "https://host",
    }


def test_debugging_settings_are_problems():
    (problem,) = Environment({"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "0"}, []).problems()
    assert problem.found == "NCCL_P2P_DISABLE=1: GPUs exchange data through host memory"
    assert problem.remedy == "unset NCCL_P2P_DISABLE"


def test_this_machine(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    finding = examine_environment()
    assert finding.facts()["NCCL_DEBUG"] == "INFO"
    assert "lo" not in finding.interfaces
