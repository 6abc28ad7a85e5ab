"""What a run prints never decides whether it goes on."""

import errno
import io


def test_a_full_disk_under_the_printed_log_does_not_end_the_run(recipe_file, command, monkeypatch):
    class FullDisk(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", FullDisk())
    assert command("train", recipe_file)[0] == 0
    assert command("train", recipe_file)[0] == 3  # it has checkpoints; the message cannot be shown
