"""What all tests of trackers share."""

import pytest

from rewarm.trackers import process


@pytest.fixture(autouse=True)
def run_when_idle(monkeypatch):
    """Trackers have their share of busy cores: other tests take them. Returns the real function."""
    real = process._run_when_idle
    monkeypatch.setattr(process, "_run_when_idle", lambda _: None)
    return real
