"""Validates a parsed document against a pydantic model; problems become located error messages.

```
YamlDocument -> pydantic -> Section
                    |
                RecipeError: file:line:column: setting: what is wrong
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rewarm import exit_codes, schedules
from rewarm.errors import RecipeError, ScheduleError, did_you_mean
from rewarm.paths import expand_path
from rewarm.quantities import BASE_LR_UNKNOWN, BASE_UNUSABLE, SPAN_UNITS, Span, parse_count
from rewarm.recipe.fields import Section
from rewarm.recipe.yaml_document import KeyPath, YamlDocument
from rewarm.remote_storage import check_no_credentials
from rewarm.schedules import Schedule

_Model = TypeVar("_Model", bound=Section)

_KEY = "[key]"
"""Pydantic appends this to the location of an error in a mapping's key."""


def validate_document(
    document: YamlDocument,
    model: type[_Model],
    context: dict[str, Any],
    problems: Sequence[str] = (),
) -> _Model:
    """Returns a parsed document as an instance of `model`, such as Recipe or Study.

    Args:
        document: the document.
        model: the class.
        context: what its validators need.
        problems: problems that were found before, one line each.

    Raises:
        RecipeError: all problems, one line each, in the order of their source locations.
    """
    lines = dict.fromkeys([*problems, *_text_problems(document, document.data, ())])
    exit_code = exit_codes.BAD_RECIPE
    try:
        validated = model.model_validate(document.data, context=context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines |= dict.fromkeys(
            _problem_line(document, problem, model)
            for problem in details
            if problem["type"] != "string_unicode"  # it is one of the texts above
        )
        if len(lines) == 1 and details[0]["type"] == BASE_UNUSABLE:
            exit_code = exit_codes.UNUSABLE_INPUT
    if lines:
        raise RecipeError(sorted(lines, key=source_order), exit_code)
    return validated


def _text_problems(document: YamlDocument, data: Any, key_path: KeyPath) -> Iterator[str]:
    """Yields a line for each text, of any setting, that no file, or no recipe, may contain."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from _text_problems(document, value, (*key_path, key))
    elif isinstance(data, str):
        try:
            check_no_credentials(data)
            _check_encodable(data)
        except ValueError as error:
            setting = ".".join(map(str, key_path))
            yield f"{document.source_location(key_path)}: {setting}: {error}"


def _check_encodable(text: str) -> None:
    """Checks that a text can be written to a file, and be the name of one.

    Raises:
        ValueError: it cannot.
    """
    if "\0" in text:
        raise ValueError("should not contain a NUL character (\\0)")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "should be UTF-8 text; half of a surrogate pair (\\ud800 to \\udfff) or a byte that is "
            "not UTF-8 cannot be written to the run's recipe"
        ) from None


def source_order(problem: str) -> tuple[str, int, int]:
    """Returns what sorts problems by file, line and column."""
    location = re.match(r"(.+?):(\d+):(\d+): ", problem)
    return (location[1], int(location[2]), int(location[3])) if location else (problem, 0, 0)


def _problem_line(document: YamlDocument, error: ErrorDetails, model: type[Section]) -> str:
    """Returns one error as `file:line:column: setting: message`."""
    key_path = tuple(part for part in error["loc"] if part != _KEY)
    if error["type"] in (BASE_UNUSABLE, BASE_LR_UNKNOWN):
        key_path = ("model", "base")  # one line, and not one for each rate that is a multiple
    setting = ".".join(map(str, key_path)) or "recipe"
    return f"{document.source_location(key_path)}: {setting}: {_message(document, error, model)}"


def _also_looked_for(document: YamlDocument) -> str:
    """Returns where else a base was looked for: beside the file that names it."""
    folder, written = document.folder_of(("model", "base")), document.data["model"]["base"]
    path = expand_path(written, folder)
    return "" if path == expand_path(written) else f"; nor is it beside the recipe ({path})"


def _message(document: YamlDocument, error: ErrorDetails, model: type[Section]) -> str:
    kind, key_path, value = error["type"], error["loc"], error["input"]
    if kind == "missing":
        return "required, but missing"
    if kind == "extra_forbidden":
        known = _settings_at(model, document.data, key_path[:-1])
        suggestion = did_you_mean(str(key_path[-1]), known)
        if not suggestion:
            suggestion = _in_another_section(model, document.data, key_path)
        if known and not suggestion:
            suggestion = f" (settings here: {', '.join(known)})"
        return f"no such setting{suggestion}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        hint = f"; write model: {{base: {value}}}" if key_path == ("model",) and value else ""
        return f"should be settings (`key: value` lines), got {_shortened(value)}{hint}"
    if kind == "string_pattern_mismatch" and key_path[-1:] == (_KEY,):
        return (
            "a name should consist of letters, digits, '.', '_' and '-', "
            "and start with a letter or digit"
        )
    if kind in ("too_short", "string_too_short") and not value:
        return "should not be empty"
    if kind in ("tuple_type", "list_type"):
        return f"should be a list, such as [{_shortened(value)}]"
    if kind in ("bool_type", "bool_parsing"):
        return f"should be true or false (got {_shortened(value)})"
    if explanation := _explain_long_span(document, error, model):
        return explanation
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == BASE_UNUSABLE:
        message += _also_looked_for(document)
    # The message already quotes what is wrong.
    if kind in ("recipe", BASE_UNUSABLE, BASE_LR_UNKNOWN) or isinstance(value, dict):
        return message
    return f"{message} (got {_shortened(value)})"


def _in_another_section(model: type[Section], data: Any, key_path: KeyPath) -> str:
    """Returns `; did you mean schedule.peak_lr?` for a setting that another section has."""
    setting = str(key_path[-1])
    for section, field in model.model_fields.items():
        kind = field.annotation
        if kind is Schedule:
            with suppress(KeyError, TypeError, ScheduleError):  # it is missing, or wrong itself
                kind = schedules.find(data["schedule"]["name"])
        if setting in getattr(kind, "model_fields", {}) and (section,) != key_path[:-1]:
            return f"; did you mean {section}.{setting}?"
    if "schedule" in model.model_fields and setting in ("lr", "learning_rate", "max_lr", "lr_peak"):
        return "; learning rates are set in `schedule`, such as schedule.peak_lr"
    return ""


def _explain_long_span(
    document: YamlDocument, error: ErrorDetails, model: type[Section]
) -> str | None:
    """Returns how long a span may be; None for another error.

    Pydantic compares fractions: that 100 steps of 20 "should be less than 1" explains nothing.
    """
    value, kind = error["input"], error["type"]
    if kind not in ("less_than", "less_than_equal"):
        return None
    comparison, limit = ("less than", "lt") if kind == "less_than" else ("at most", "le")
    share = error["ctx"][limit]
    if isinstance(value, str) and value.rpartition(" ")[2] in SPAN_UNITS:
        return (
            f"{value} are too many: should be {comparison} {f'{share:.0%} of ' * (share != 1)}"
            f"{_whole_of_span(document, error['loc'])}; write fewer, or a share such as 10%, or "
            "raise tokens"
        )
    if isinstance(value, int | float) and _is_span(model, document.data, error["loc"]):
        steps = f", or for steps '{value:g} step{'s' * (value != 1)}'" if value % 1 == 0 else ""
        return (
            f"should be {comparison} {share:g}, a share of the run (got {value:g}, which is "
            f"{value:.0%}); for percent write {value:g}%{steps}"
        )
    return None


def _whole_of_span(document: YamlDocument, key_path: KeyPath) -> str:
    """Returns what a span at a key path is a part of: `the run of 20 steps (20,480 tokens)`."""
    if key_path.count("schedule") > 1:  # of a schedule in another one, such as rewarm-sequence
        return "the part of the run that this schedule is for"
    tokens_per_step = parse_count(document.data["batch"]["tokens"])
    steps = parse_count(document.data["tokens"]) // tokens_per_step
    return f"the run of {steps:,} steps ({steps * tokens_per_step:,} tokens)"


def _shortened(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _settings_at(model: Any, data: Any, key_path: KeyPath) -> list[str]:
    """Returns the names of the settings of the section at a key path."""
    fields = getattr(_type_at(model, data, key_path), "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _is_span(model: Any, data: Any, key_path: KeyPath) -> bool:
    """Returns whether the setting at a key path is a part of the run."""
    return _type_at(model, data, key_path) is Span


def _type_at(model: Any, data: Any, key_path: KeyPath) -> Any:
    """Returns the type of the section or setting at a key path."""
    for part in key_path:
        fields = getattr(model, "model_fields", {})
        by_name = {field.alias or name: field for name, field in fields.items()}
        if part in by_name:
            inner = by_name[part].annotation
        else:  # an entry of a mapping or list: dict[Name, Section] -> Section
            arguments = [argument for argument in get_args(model) if argument is not ...]
            inner = arguments[-1] if arguments else None
        if get_origin(inner) in (Union, UnionType):  # Section | None -> Section
            inner = get_args(inner)[0]
        data = data[part]
        model = schedules.find(data["name"]) if inner is Schedule else inner
    return model
