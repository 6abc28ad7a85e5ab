"""Folders that are made once for all processes of a test session."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[[Path], object]


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str, make: Make) -> Path:
    """Returns a folder of this session, filled by `make` in the first process that asks for it.

    Each process of pytest-xdist has its own session fixtures, and its temporary folder lies in one
    of the whole session. A test must not change a shared folder: it copies what it changes.
    """
    session = tmp_path_factory.getbasetemp()
    if session.name.startswith("popen-"):  # of one process of pytest-xdist
        session = session.parent
    folder, complete = session / name, session / f"{name}.complete"
    with (session / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            folder.mkdir()  # fails if it failed before: then each test that needs it says so
            make(folder)
            complete.touch()
    return folder
