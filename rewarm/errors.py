"""What can go wrong, as a tree; every leaf says what was found, what was wanted and what to try.

```
RewarmError
  RecipeError      the document is wrong: file, line, column, path, reason     exit 2
  ScheduleError    a plug-in is missing, broken, clashes, or gives a bad rate  exit 2
  DataError        a shard is missing, truncated, corrupt, empty, too few      exit 3
  CheckpointError  not a checkpoint; corrupt; another model; a run in use      exit 3
  Diverged         the loss is not finite: step, last good checkpoint          exit 4
  Preempted        a signal asked the run to stop; its checkpoint is saved     exit 75 (SIGINT: 130)
```
"""

from rewarm import exit_codes


class RewarmError(Exception):
    """Something the person at the terminal can act on; the text is the whole message."""

    exit_code = exit_codes.UNEXPECTED

    def __str__(self) -> str:
        return printable(super().__str__())


class RecipeError(RewarmError):
    """A recipe is wrong. Holds every problem found, one located line each."""

    exit_code = exit_codes.BAD_RECIPE

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ScheduleError(RewarmError):
    """A schedule plug-in is missing, broken, clashes with another, or gives a rate that is none."""

    exit_code = exit_codes.BAD_RECIPE


class DataError(RewarmError):
    """A shard or a text is missing, damaged, foreign, or too small."""

    exit_code = exit_codes.UNUSABLE_INPUT


class CheckpointError(RewarmError):
    """A base, checkpoint or run directory cannot be used as asked."""

    exit_code = exit_codes.UNUSABLE_INPUT


class Diverged(RewarmError):
    """The loss or the gradient stopped being finite."""

    exit_code = exit_codes.DIVERGED


class Preempted(RewarmError):
    """A signal asked the run to stop; everything up to the current step is saved."""

    exit_code = exit_codes.STOPPED


def printable(text: str) -> str:
    """Returns text that a terminal shows and does not obey, each line and all of it bounded.

    Messages quote names and values from files that anyone may have written.
    """
    lines = text.split("\n")
    if len(lines) > 50:
        lines = [*lines[:48], f"... and {len(lines) - 49} more lines", lines[-1]]
    cut = (x if len(x) <= 1000 else f"{x[:600]} [...] {x[-300:]}" for x in lines)
    return "\n".join(map(visible, cut))


def visible(line: str) -> str:
    """Returns a line with whatever cannot be printed written as its escape."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in line
    )


def did_you_mean(word: str, known: list[str]) -> str:
    """Returns `; did you mean 'x'?` when a known word is near, else nothing."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
