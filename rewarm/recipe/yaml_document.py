"""Parses YAML into plain data and keeps each setting's line, so that an error can point at it.

Only PyYAML's safe nodes are used. A recipe may not contain aliases (which also rules out "billion
laughs" documents), tags, repeated keys or keys that are not text, and its size and depth are
limited.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rewarm.errors import RecipeError
from rewarm.path_contents import nearest_name
from rewarm.paths import WORKING_DIRECTORY

KeyPath = tuple[str | int, ...]
"""Keys and list indices that lead to a setting: ("data", "train", "pile", "weight")."""

_Value = TypeVar("_Value")

_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 32
_OTHER_FILES = {".jsonl", ".txt", ".csv", ".tsv", ".md"}
"""Ends of names of texts that are no recipe, though YAML may accept some of them."""


class YamlDocument:
    """A parsed YAML document: its data, and the source location of each part."""

    def __init__(self, text: str, source: str, folder: Path = WORKING_DIRECTORY) -> None:
        """Parses `text`.

        Args:
            text: the document.
            source: the file name shown in errors.
            folder: the folder that paths in the text are relative to.

        Raises:
            RecipeError: the text is not valid YAML, not a mapping, or contains what is not allowed.
        """
        self.source = source
        self.folder = folder
        self._folders: dict[KeyPath, Path] = {}
        data, self._source_locations = _parse(text, source)
        if not isinstance(data, dict | None):
            message = f"should be settings (`key: value` lines), got {data!r:.60}"
            raise RecipeError([f"{self.source_location(())}: {message}"])
        self.data: dict[str, Any] = data or {}

    @classmethod
    def load(cls, path: Path) -> YamlDocument:
        """Returns the document in a file.

        Raises:
            RecipeError: the file cannot be read, or is not a valid document.
        """
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(_MAX_CHARACTERS + 1)
            if path.suffix.lower() in _OTHER_FILES:
                raise RecipeError(
                    [
                        f"{path}: is not a recipe or a study, which are YAML files (.yaml); text "
                        "becomes training data with `rewarm shard`, which data.train then names"
                    ]
                )
            return cls(text, str(path), path.parent)
        except FileNotFoundError:
            hint = nearest_name(path)
            raise RecipeError([f"{path}: no such file; a recipe is a YAML file{hint}"]) from None
        except IsADirectoryError:
            inner = path / "recipe.yaml"
            hint = f"; name {inner}" if inner.is_file() else ""
            raise RecipeError([f"{path}: is a folder; a recipe is a YAML file{hint}"]) from None
        except UnicodeDecodeError as error:
            raise RecipeError(
                [f"{path}: not UTF-8 text ({error.reason}); a recipe or a study is a YAML file"]
            ) from None
        except OSError as error:
            raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None

    @property
    def is_study(self) -> bool:
        """Whether it is a study, by its settings: no recipe has any of these."""
        return not self.data.keys().isdisjoint(("study", "recipe", "arms"))

    def apply_overrides(self, assignments: list[str]) -> list[str]:
        """Changes settings, and returns the problems of those that cannot be, one line each."""
        problems = []
        for assignment in assignments:
            try:
                self.apply_override(assignment)
            except RecipeError as error:
                problems += error.problems
        return problems

    def apply_override(
        self, assignment: str, source: str | None = None, keys: KeyPath | None = None
    ) -> None:
        """Changes one setting, written `a.b=value` with a YAML value.

        Args:
            assignment: the setting and its new value.
            source: what errors show as its location; by default `--set` and the assignment.
            keys: the path, where some of its keys contain a dot.

        Raises:
            RecipeError: it is not an assignment, or its path goes through a value.
        """
        path, equals, written = assignment.partition("=")
        keys = keys or tuple(path.split("."))
        source = source or f"--set {assignment}"
        if not equals or not all(keys):
            raise RecipeError([f"{source}: should be written --set section.setting=value"])
        self.set_value(keys, _parse(written, source)[0], source)

    def set_value(
        self, key_path: KeyPath, value: Any, source: str, folder: Path = WORKING_DIRECTORY
    ) -> None:
        """Sets a setting to plain data, creating missing sections.

        Args:
            key_path: the setting.
            value: its new value.
            source: what errors show as its location.
            folder: the folder that paths in the value are relative to.

        Raises:
            RecipeError: the path goes through a value, which has no settings.
        """
        section = self.data
        for depth, key in enumerate(key_path[:-1], start=1):
            if section.get(str(key)) is None:  # missing, or written without a value: `arm:`
                self._source_locations[key_path[:depth]] = source
                section[str(key)] = {}
            section = section[str(key)]
            if not isinstance(section, dict):
                path = ".".join(map(str, key_path[:depth]))
                raise RecipeError([f"{source}: {path} is a value and has no settings"])
        section[str(key_path[-1])] = value
        self._source_locations = _without_inner(self._source_locations, key_path)
        self._source_locations[key_path] = source
        self._folders = _without_inner(self._folders, key_path)
        self._folders[key_path] = folder

    def source_location(self, key_path: KeyPath) -> str:
        """Returns `file:line:column` of a setting, or of the closest section that contains it."""
        while key_path and key_path not in self._source_locations:
            key_path = key_path[:-1]
        return self._source_locations.get(key_path, f"{self.source}:1:1")

    def folder_of(self, key_path: KeyPath) -> Path:
        """Returns the folder that a path in a setting is relative to."""
        while key_path and key_path not in self._folders:
            key_path = key_path[:-1]
        return self._folders.get(key_path, self.folder)


def _without_inner(parts: dict[KeyPath, _Value], key_path: KeyPath) -> dict[KeyPath, _Value]:
    """Returns what is known about a document's parts, without a part and the parts inside it."""
    return {path: value for path, value in parts.items() if path[: len(key_path)] != key_path}


def write_yaml(data: Any) -> str:
    """Returns plain data as YAML that YamlDocument and any YAML 1.1 parser read back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse(text: str, source: str) -> tuple[Any, dict[KeyPath, str]]:
    """Returns the data in a text (None if it is empty) and the source location of each part."""
    if len(text) > _MAX_CHARACTERS:
        raise RecipeError(
            [f"{source}: longer than {_MAX_CHARACTERS:,} characters; is it a recipe?"]
        )
    try:
        loader = _Loader(text, source)
        root = loader.get_single_node()
        return (loader.read(root, ()) if root else None), loader.source_locations
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError([f"{source}:{line}:1: not text: {error.reason}"]) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_not_yaml(error, source)]) from None
    except RecursionError:
        raise RecipeError([f"{source}: nested deeper than {_MAX_DEPTH} levels"]) from None


def _not_yaml(error: yaml.MarkedYAMLError, source: str) -> str:
    message = "; ".join(part for part in (error.context, error.problem) if part)
    if message.endswith("but found '<block mapping start>'"):
        message = "this line is indented more, or less, than those above that it belongs to"
    opening, problem = error.context_mark, error.problem_mark
    mark = problem or opening
    if message.startswith(_UNCLOSED) and opening and problem and opening.line < problem.line:
        mark, message = opening, f"{message} (noticed in line {problem.line + 1})"
    return f"{_format_mark(source, mark) if mark else source}: not valid YAML: {message}"


# PyYAML's messages about an unclosed bracket or quote: the mistake is at the opening one.
_UNCLOSED = ("while parsing a flow", "while scanning a quoted", "while scanning a simple key")


def _format_mark(source: str, mark: yaml.Mark) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}"


class _Loader(yaml.SafeLoader):
    """Reads null, booleans and numbers as in YAML 1.2: `3e-4` is a number, `no` and `017` text."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.source_locations: dict[KeyPath, str] = {}

    def fetch_alias(self) -> None:
        raise self._problem(self.get_mark(), "aliases (*name) are not supported; write it out")

    def fetch_tag(self) -> None:
        raise self._problem(self.get_mark(), "tags (!name) are not supported; text needs quotes")

    def read(self, node: yaml.Node, key_path: KeyPath) -> Any:
        """Returns a node's data; records the location of each key and each value in a list."""
        self.source_locations.setdefault(key_path, _format_mark(self.source, node.start_mark))
        if len(key_path) > _MAX_DEPTH:
            message = f"nested deeper than {_MAX_DEPTH} levels"
            raise self._problem(node.start_mark, message, key_path)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*key_path, i)) for i, item in enumerate(node.value)]
        try:
            return self.construct_object(node)
        except ValueError as error:  # an integer of thousands of digits
            raise self._problem(node.start_mark, f"cannot be read: {error}", key_path) from None

    def _read_mapping(self, node: yaml.MappingNode, key_path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, mark = self.construct_object(key_node), key_node.start_mark
            if not isinstance(key, str):
                message = f"a setting's name should be text, got {key!r}"
                raise self._problem(mark, message, key_path)
            if key in data:
                raise self._problem(mark, f"{key} is written twice; keep one", key_path)
            self.source_locations[(*key_path, key)] = _format_mark(self.source, mark)
            data[key] = self.read(value_node, (*key_path, key))
        return data

    def _problem(self, mark: yaml.Mark, message: str, key_path: KeyPath = ()) -> RecipeError:
        path = ".".join(map(str, key_path))
        location = _format_mark(self.source, mark)
        return RecipeError([f"{location}: {path + ': ' if path else ''}{message}"])


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or `_Loader` would read as something other than text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _first, _plain in (
    ("null", "", ""),
    ("null", "~nN", "~|null|Null|NULL"),
    ("bool", "tTfF", "(?i:true|false)"),
    ("int", "-+0123456789", "[-+]?(?:0|[1-9][0-9_]*)"),
    ("float", "-+0123456789", r"[-+]?[0-9][0-9_]*(?=[.eE])(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"),
    ("float", "-+.", r"[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
):
    for _class in (_Loader, _Dumper):  # \Z, because PyYAML accepts a match at the start
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_plain})\Z"), list(_first) or [""]
        )


def flatten_settings(data: Any, path: str = "") -> dict[str, Any]:
    """Returns nested settings as {"a.b": value}."""
    if not isinstance(data, dict):
        return {path: data}
    return {
        inner: value
        for key, section in data.items()
        for inner, value in flatten_settings(section, f"{path}.{key}" if path else str(key)).items()
    }
