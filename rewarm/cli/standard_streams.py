"""stdout and stderr that no closed pipe, full disk or old encoding can turn into an exception.

```
print, rich ──> TextIOWrapper: what its encoding lacks becomes ASCII ──> _TolerantFile
                                            the first error is kept, later output is dropped ──┘
```
An error of its output does not end a command: training that cannot print must not be lost. `main`
asks for the error when the command has ended.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ASCII_FALLBACK = "rewarm-ascii"
_ASCII = {
    "→": "->",
    "←": "<-",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "÷": "/",
    "±": "+-",
    "²": "^2",
    "µ": "u",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "•": "*",
}
_FIRST_BRAILLE = 0x2800
_FIRST_BOX_DRAWING, _LAST_BOX_DRAWING = 0x2500, 0x257F
_UPPER_DOTS = 0x01 | 0x08 | 0x02 | 0x10  # those of the upper half of a Braille character


class _TolerantFile(io.FileIO):
    """A file that keeps the first error of writing to it, and drops what is written after that."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes data and returns the number of bytes that were written or dropped."""
        view = memoryview(data)
        while self.error is None:
            try:
                written = super().write(view)
            except OSError as error:
                self.error = error
                break
            if written is not None:
                return written
            # None: another process that shares the terminal or pipe made it non-blocking.
            select.select([], [self], [])
        return view.nbytes


class _Output:
    """What is known about stdout."""

    file: _TolerantFile | None = None
    is_summary = False


_OUTPUT = _Output()


def set_up_standard_streams() -> None:
    """Makes stdout and stderr tolerate errors and characters that their encodings do not have.

    Streams that were replaced, as a test does, are left unchanged.
    """
    _OUTPUT.is_summary = False
    codecs.register_error(_ASCII_FALLBACK, _as_ascii)
    if sys.stdin is None:
        _occupy_closed_descriptor()
    if sys.stdout is sys.__stdout__:
        descriptor = 1 if sys.stdout else _occupy_closed_descriptor()
        _OUTPUT.file = _TolerantFile(descriptor, "w", closefd=False)
        sys.stdout = _text_stream(_OUTPUT.file, sys.stdout)
    if sys.stderr is sys.__stderr__:
        file = _TolerantFile(2 if sys.stderr else _occupy_closed_descriptor(), "w", closefd=False)
        sys.stderr = _text_stream(file, sys.stderr)


def output_is_summary() -> None:
    """Declares that the command's results are files, and that it prints a mere summary of them.

    An error of writing to stdout is then a warning, and does not change the exit code.
    """
    _OUTPUT.is_summary = True


def is_output_summary() -> bool:
    """Returns whether the command that runs has called `output_is_summary`."""
    return _OUTPUT.is_summary


def flush_stdout() -> OSError | None:
    """Writes what is buffered; returns the first error of writing to stdout since the start."""
    try:
        sys.stdout.flush()
    except OSError as error:  # a stream that `set_up_standard_streams` left unchanged
        return error
    return _OUTPUT.file.error if _OUTPUT.file else None


def print_json(text: str) -> None:
    """Prints a JSON document; characters outside ASCII as escape sequences, which keep its meaning.

    They would be replaced by others if stdout had another encoding.
    """
    print("".join(char if char.isascii() else _json_escape(char) for char in text))


def _json_escape(character: str) -> str:
    r"""Returns `\uXXXX`, twice for a character outside the basic plane."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replaces characters that an encoding does not have; called by the `codecs` module."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii_for, error.object[error.start : error.end])), error.end


def _ascii_for(character: str) -> str:
    """Returns similar ASCII characters, or the escape sequence of a character without any."""
    if character in _ASCII:
        return _ASCII[character]
    code = ord(character)
    if _FIRST_BOX_DRAWING <= code <= _LAST_BOX_DRAWING:
        return {"─": "-", "━": "-", "│": "|", "┃": "|", "┊": ":"}.get(character, "+")
    if _FIRST_BRAILLE <= code < _FIRST_BRAILLE + 256:
        upper, lower = code & _UPPER_DOTS, code & 0xFF & ~_UPPER_DOTS
        return ":" if upper and lower else "'" if upper else "." if lower else " "
    return character.encode("unicode_escape").decode()


def _occupy_closed_descriptor() -> int:
    """Opens the lowest descriptor that is closed, and returns it; writing to it is an error.

    If stdout stayed closed, the next file would be opened as descriptor 1, and what is printed
    would go into that file.
    """
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    return descriptor


def _text_stream(file: _TolerantFile, replaced: TextIO | None) -> TextIO:
    """Returns a text stream on a file, with the encoding and buffering of the one it replaces.

    That is None if its descriptor was closed when Python started.
    """
    unbuffered = isinstance(replaced, io.TextIOWrapper) and replaced.write_through
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=replaced.encoding if replaced else "utf-8",
        errors=_ASCII_FALLBACK,
        line_buffering=replaced is not None and getattr(replaced, "line_buffering", False),
        write_through=unbuffered,
    )
