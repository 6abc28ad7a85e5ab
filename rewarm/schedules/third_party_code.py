"""Calls code of plug-ins, which may raise anything, end the process, or never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from rewarm.errors import ScheduleError

_Returned = TypeVar("_Returned")


def within_time_limit(
    function: Callable[[], _Returned], seconds: float, describe_timeout: Callable[[], str]
) -> _Returned:
    """Returns `function()`, or raises an error if it takes longer than `seconds`.

    It runs in a thread that is abandoned after that time: a signal could interrupt the main thread
    only, and plug-ins may catch the exception that its handler raises.

    Raises:
        ScheduleError: it did not return in time; its text is that of `describe_timeout`.
    """
    result: Future[_Returned] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="rewarm-plug-in", daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError:
        if result.done():  # the function's own error
            raise
        raise ScheduleError(describe_timeout()) from None


def describe_error(error: BaseException) -> str:
    """Returns the type and the text of an exception, even if it cannot be converted to text."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def describe_value(value: object) -> str:
    """Returns `repr(value)`, or its type if it has no representation."""
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__}"
