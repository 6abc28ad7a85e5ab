"""`rewarm doctor` on this machine, with broken parts."""

import json
from importlib.metadata import version

import pytest

SECTIONS = ["Software", "GPU", "CPU", "Memory", "Limits", "Compiler", "Disk", "Environment"]


def test_the_report_has_every_section_and_fits_a_bug_report(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    code, out, err = command("doctor", tmp_path)
    assert (code, err) == (0, "")
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert [title for title in titles if title != "Links between GPUs"][:-1] == SECTIONS
    assert f"torch {version('torch')}" in out
    assert "problem" in titles[-1].lower()
    assert "\x1b" not in out
    assert "hf_abcdefgh" not in out
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_document(command, tmp_path):
    code, out, err = command("doctor", tmp_path, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document.keys() >= {*map(str.lower, SECTIONS), "problems"}
    assert document["disk"]["folder"] == str(tmp_path)


@pytest.fixture
def broken_torch(tmp_path, monkeypatch):
    """A PyTorch whose import ends as with a missing library, in started processes."""
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site/torch/__init__.py").write_text(
        "raise ImportError('libcudnn.so.9: cannot open shared object file')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")


@pytest.mark.usefixtures("broken_torch")
def test_a_broken_pytorch_is_a_problem_and_the_rest_is_printed(command, tmp_path):
    code, out, err = command("doctor", tmp_path)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "found: GPU could not be examined: RuntimeError: ImportError: libcudnn.so.9" in text
    assert "Traceback" not in out
    assert "write speed" in out
