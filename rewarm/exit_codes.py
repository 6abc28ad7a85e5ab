"""The exit codes of every command; scripts and batch systems rely on them."""

import signal

DONE = 0
UNEXPECTED = 1
"""An unexpected error."""
BAD_RECIPE = 2
"""The command line, a recipe or a schedule is wrong."""
UNUSABLE_INPUT = 3
"""Data, a base model, a checkpoint or a run directory cannot be used."""
DIVERGED = 4
"""The loss or the gradient is not finite."""
STOPPED = 75
"""Stopped by a signal or a time limit, with everything saved; a batch system may requeue it."""
INTERRUPTED = 128 + signal.SIGINT
"""Stopped by Ctrl-C, with everything saved: 130."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The process that read the output has ended: 141."""
