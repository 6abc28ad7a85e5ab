"""What is set before anything heavy is imported."""

import os
import subprocess
import sys

import pytest

from rewarm.cli.app import main


@pytest.mark.parametrize(("setting", "expected"), [(None, "1000"), ("7", "7")])
def test_threads_sleep_while_they_wait_unless_set_otherwise(monkeypatch, setting, expected):
    monkeypatch.setattr("sys.argv", ["rewarm", "--version"])
    monkeypatch.setenv("GOMP_SPINCOUNT", setting or "")
    if setting is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    with pytest.raises(SystemExit):
        main()
    assert os.environ["GOMP_SPINCOUNT"] == expected


def test_ctrl_c_during_an_import_is_one_line_and_no_traceback(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('imported')\n"
    )
    program = (
        "from rewarm.cli.process_setup import exit_at_interrupts_of_imports as set_up\n"
        "set_up(); import slow; print('went on')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "interrupted; finished shards and saved checkpoints are kept\n"
