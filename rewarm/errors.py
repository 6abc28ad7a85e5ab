"""The errors that rewarm raises: each message says what was found, expected, and what to try.

```
RewarmError
  RecipeError      the recipe is wrong: file, line, column, setting, reason                exit 2
  ScheduleError    a schedule is missing, broken, ambiguous, or returns an invalid rate    exit 2
  DataError        a shard is missing, truncated, corrupt, empty, or data is too short     exit 3
  CheckpointError  not a checkpoint; corrupt; of another model; a run in use               exit 3
  Diverged         the loss or gradient is not finite: step, last good checkpoint          exit 4
  PeerError        another process of the run failed: with its code, or with               exit 1
  LostPeerError    another process of the run was killed, or hangs                         exit 1
  Preempted        a signal or a time limit stopped the run, saved             exit 75 (SIGINT: 130)
```
"""

import re

from rewarm import exit_codes

# https://user:password@host; a revision follows the @ of hf://owner/name@revision
_USER = re.compile(
    r"((?!hf:)[A-Za-z][A-Za-z0-9+.-]{0,19}:/+)"
    r"(?:[^\s/@?#'\"]*|[^\s/@?#'\"]*:(?!\d+/)[^\s@'\"]*)@"  # AWS's secrets may contain a /
    r"|(\bhf:/+)[^\s/@:]*:[^\s/@]*@"
)
_QUERY = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,19}:/+[^\s?#'\"]*[?#])[^\s='\"]*=[^\s'\"]*?(?=:?(?:[\s'\"]|$))"
)

_REFUSED_BYTES = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")


class RewarmError(Exception):
    """An error that the user can act on; its text is the whole message."""

    exit_code = exit_codes.UNEXPECTED

    def __str__(self) -> str:
        return printable(super().__str__())


class RecipeError(RewarmError):
    """A recipe is wrong. Contains all its problems, one line each, with their locations."""

    exit_code = exit_codes.BAD_RECIPE

    def __init__(self, problems: list[str], exit_code: int = exit_codes.BAD_RECIPE) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.exit_code = (
            exit_code  # UNUSABLE_INPUT if all that is wrong is that the base is missing
        )


class ScheduleError(RewarmError):
    """A schedule plug-in is missing, broken, ambiguous, or returned an invalid rate."""

    exit_code = exit_codes.BAD_RECIPE


class DataError(RewarmError):
    """A shard or text file is missing, damaged, in another format, or too small."""

    exit_code = exit_codes.UNUSABLE_INPUT


class CheckpointError(RewarmError):
    """A base model, checkpoint or run directory cannot be used as requested."""

    exit_code = exit_codes.UNUSABLE_INPUT


class Diverged(RewarmError):
    """The loss or the gradient is no longer finite."""

    exit_code = exit_codes.DIVERGED


class Preempted(RewarmError):
    """A signal or a time limit stopped the run; everything up to the current step is saved."""

    exit_code = exit_codes.STOPPED


class PeerError(RewarmError):
    """Another process of a run failed; with its message and its exit code."""


class LostPeerError(RewarmError):
    """Another process of a run did not come to an agreement: it was killed, or it hangs."""


def out_of_memory(error: BaseException) -> str | None:
    """Returns the message about an error that says that there is no memory left, else None."""
    if match := _REFUSED_BYTES.search(str(error)):  # PyTorch's on a CPU is a RuntimeError
        return (
            f"out of memory: {int(match[1]):,} bytes could not be allocated; use a smaller "
            "batch.microbatch, or divide the weights among more processes (parallel.shard: all)"
        )
    if type(error).__name__ == "OutOfMemoryError":
        text = printable(str(error).strip()) or "no message"
        return (
            f"out of memory on the device: {text}; use a smaller batch.microbatch, or memory: lean"
        )
    return None


def printable(text: str) -> str:
    """Returns text with unprintable characters escaped, cut to 50 lines of 1,000 characters.

    Messages quote names and values from untrusted files. Credentials in URLs are left out.
    """
    lines = text.split("\n")
    if len(lines) > 50:
        lines = [*lines[:48], f"... and {len(lines) - 49} more lines", lines[-1]]
    # A hostile text may be so long that a search in all of it would take hours.
    lines = [line if len(line) <= 8000 else line[:4000] + line[-4000:] for line in lines]
    lines = hide_credentials("\n".join(lines)).split("\n")
    shortened = (
        line if len(line) <= 1000 else f"{line[:600]} [...] {line[-300:]}" for line in lines
    )
    return "\n".join(map(escape_unprintable, shortened))


def hide_credentials(text: str) -> str:
    """Returns a text with `***` for the user, password and query of each URL in it.

    >>> hide_credentials("https://me:secret@host/pile?token=secret")
    'https://***@host/pile?***'
    """
    without_users = _USER.sub(lambda match: f"{match[1] or match[2]}***@", text)
    return _QUERY.sub(r"\1***", without_users)


def escape_unprintable(line: str) -> str:
    """Returns a line with every character that cannot be printed as its escape sequence."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in line
    )


def did_you_mean(word: str, known_words: list[str], *, prefix: str = "") -> str:
    """Returns `; did you mean 'x'?` with the most similar known word, or "" if none is similar.

    Args:
        word: what was found.
        known_words: what it may be.
        prefix: what to put before the known word, such as the folder that both are in.
    """
    import difflib

    similar = difflib.get_close_matches(word, known_words, n=1, cutoff=0.6)
    return f"; did you mean {prefix + similar[0]!r}?" if similar else ""
