"""What is set before anything heavy is imported."""

import os

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
