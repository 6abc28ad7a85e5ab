"""Errors if a model cannot be downloaded; no test contacts the hub."""

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rewarm.checkpoints.hub_download import download_from_hub
from rewarm.errors import CheckpointError


def test_a_failed_download_names_the_folder_the_revision_and_the_reason(monkeypatch, tmp_path):
    def fail(*_args, **_kwargs):
        raise OSError("no network\nand many more lines")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as raised:
        download_from_hub("owner/model", "step1", weights=True)
    assert str(raised.value) == (
        f"owner/model at revision step1: no such folder ({tmp_path}/owner/model), and no model of "
        "the hub that can be downloaded: no network; correct the path (one in a recipe is relative "
        "to the recipe's folder) or the name, or name the folder of a download"
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (LocalEntryNotFoundError, "the hub cannot be reached, and the model is not in its cach"),
        (RepositoryNotFoundError, "the hub has no model of that name,"),
        (GatedRepoError, "access to it has to be requested on its page"),
        (RevisionNotFoundError, "the model has no such revision"),
    ],
)
def test_the_reason_of_a_failed_download_is_said_in_words(monkeypatch, kind, reason):
    def fail(*_args, **_kwargs):
        raise kind.__new__(kind, "x")  # its constructor needs a response of the hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError) as raised:
        download_from_hub("owner/model", None, weights=False)
    assert f"downloaded: {reason}" in str(raised.value)


def test_a_likely_mistake_in_a_path_is_said_before_the_hub_is_asked(monkeypatch, tmp_path, caplog):
    def fail(*_args, **_kwargs):
        raise OSError("no network")

    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"did you mean 'runs/base'\?"):
        download_from_hub("runs/bse", None, weights=False)
    assert caplog.messages == [
        f"runs/bse: no such folder ({tmp_path}/runs/bse); asking the hub for a model of that name; "
        "did you mean 'runs/base'?"
    ]


def test_pickles_are_downloaded_only_without_safetensors(monkeypatch, tmp_path):
    patterns = []

    def snapshot_download(name, *, revision, allow_patterns):
        patterns.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download_from_hub("owner/model", None, weights=True) == tmp_path
    assert ["pytorch_model*.bin" in pattern for pattern in patterns] == [False, True]
    (tmp_path / "model.safetensors").touch()
    download_from_hub("owner/model", None, weights=True)
    assert len(patterns) == 3
