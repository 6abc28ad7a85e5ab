"""YAML in, data and the place of every key out, so that an error can point at its line.

Reads through PyYAML's safe nodes only. What a recipe has no use for is refused: aliases (and the
"billion laughs" with them), tags, repeated keys, keys that are not text, documents too large or too
deep.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rewarm.errors import RecipeError

Location = tuple[str | int, ...]

_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 32


class YamlDocument:
    """A parsed YAML document: its data, and where in the source each part of it stands."""

    def __init__(self, text: str, source: str) -> None:
        """Parses `text`; `source` is the name that errors show.

        Raises:
            RecipeError: it is not YAML, or holds what a recipe may not hold.
        """
        self.source = source
        data, self._places = _parse(text, source)
        if not isinstance(data, dict | None):
            raise RecipeError(
                [f"{self.where(())}: should be settings (`key: value` lines), got {data!r:.60}"]
            )
        self.data: dict[str, Any] = data or {}

    @classmethod
    def load(cls, path: Path) -> YamlDocument:
        """Returns the document in a file.

        Raises:
            RecipeError: the file cannot be read, or is not a valid document.
        """
        try:
            with path.open(encoding="utf-8") as file:
                return cls(file.read(_MAX_CHARACTERS + 1), str(path))
        except FileNotFoundError:
            raise RecipeError([f"{path}: no such file; a recipe is a YAML file"]) from None
        except IsADirectoryError:
            raise RecipeError([f"{path}: is a folder; a recipe is a YAML file"]) from None
        except UnicodeDecodeError as error:
            raise RecipeError([f"{path}: not UTF-8 text: {error.reason}"]) from None
        except OSError as error:
            raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None

    def set(self, assignment: str, source: str | None = None) -> None:
        """Overrides one setting, written `a.b=value` with a YAML value.

        Args:
            assignment: the setting and its value.
            source: the place that errors show; without it `--set` and the assignment.

        Raises:
            RecipeError: it is not an assignment, or leads through something that has no settings.
        """
        path, equals, written = assignment.partition("=")
        keys = tuple(path.split("."))
        source = source or f"--set {assignment}"
        if not equals or not all(keys):
            raise RecipeError([f"{source}: should be written --set section.setting=value"])
        self.put(keys, _parse(written, source)[0], source)

    def put(self, keys: Location, value: Any, source: str) -> None:
        """Puts plain data in the place of a setting; `source` is the place that errors show.

        Raises:
            RecipeError: it leads through something that has no settings.
        """
        parent = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            if key not in parent:
                self._places[keys[:depth]] = source
            parent = parent.setdefault(str(key), {})
            if not isinstance(parent, dict):
                path = ".".join(map(str, keys[:depth]))
                raise RecipeError([f"{source}: {path} has no settings"])
        parent[str(keys[-1])] = value
        self._places = {k: v for k, v in self._places.items() if k[: len(keys)] != keys}
        self._places[keys] = source

    def where(self, location: Location) -> str:
        """Returns `file:line:column` of a setting, or of the nearest part around it."""
        while location and location not in self._places:
            location = location[:-1]
        return self._places.get(location, f"{self.source}:1:1")


def write_yaml(data: Any) -> str:
    """Returns plain data as YAML that `Document`, and any reader of YAML 1.1, reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse(text: str, source: str) -> tuple[Any, dict[Location, str]]:
    """Returns the data in a text, None where it is empty, and the place of each part."""
    if len(text) > _MAX_CHARACTERS:
        raise RecipeError(
            [f"{source}: longer than {_MAX_CHARACTERS:,} characters; is it a recipe?"]
        )
    try:
        loader = _Loader(text, source)
        root = loader.get_single_node()
        return (loader.read(root, ()) if root else None), loader.places
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError([f"{source}:{line}:1: not text: {error.reason}"]) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_not_yaml(error, source)]) from None
    except RecursionError:
        raise RecipeError([f"{source}: nested deeper than {_MAX_DEPTH} levels"]) from None


def _not_yaml(error: yaml.MarkedYAMLError, source: str) -> str:
    what = "; ".join(part for part in (error.context, error.problem) if part)
    opened, noticed = error.context_mark, error.problem_mark
    mark = noticed or opened
    if what.startswith(_UNCLOSED) and opened and noticed and opened.line < noticed.line:
        mark, what = opened, f"{what} (noticed in line {noticed.line + 1})"
    return f"{_place(source, mark) if mark else source}: not valid YAML: {what}"


# What PyYAML was in the middle of when something was left open: the fault is where that began.
_UNCLOSED = ("while parsing a flow", "while scanning a quoted", "while scanning a simple key")


def _place(source: str, mark: yaml.Mark) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's null, true and numbers, `3e-4` among them; `no`, `017` and `1:30` are text."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.places: dict[Location, str] = {}

    def fetch_alias(self) -> None:
        raise self._refuse(self.get_mark(), "aliases (*name) are not supported; write it out")

    def fetch_tag(self) -> None:
        raise self._refuse(self.get_mark(), "tags (!name) are not supported; text needs quotes")

    def read(self, node: yaml.Node, at: Location) -> Any:
        """Returns a node's data; records where each key (for values in lists, each value) is."""
        self.places.setdefault(at, _place(self.source, node.start_mark))
        if len(at) > _MAX_DEPTH:
            raise self._refuse(node.start_mark, f"nested deeper than {_MAX_DEPTH} levels", at)
        if isinstance(node, yaml.MappingNode):
            data: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key, mark = self.construct_object(key_node), key_node.start_mark
                if not isinstance(key, str):
                    raise self._refuse(mark, f"a setting's name should be text, got {key!r}", at)
                if key in data:
                    raise self._refuse(mark, f"{key} is written twice; keep one", at)
                self.places[(*at, key)] = _place(self.source, mark)
                data[key] = self.read(value_node, (*at, key))
            return data
        if isinstance(node, yaml.SequenceNode):
            return [self.read(one, (*at, i)) for i, one in enumerate(node.value)]
        try:
            return self.construct_object(node)
        except ValueError as error:  # a whole number of thousands of digits
            raise self._refuse(node.start_mark, f"cannot be read: {error}", at) from None

    def _refuse(self, mark: yaml.Mark, why: str, at: Location = ()) -> RecipeError:
        path = ".".join(map(str, at))
        return RecipeError([f"{_place(self.source, mark)}: {path + ': ' if path else ''}{why}"])


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or `_Loader` would take for something else."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _first, _plain in (
    ("null", "", ""),
    ("null", "~nN", "~|null|Null|NULL"),
    ("bool", "tTfF", "(?i:true|false)"),
    ("int", "-+0123456789", "[-+]?(?:0|[1-9][0-9_]*)"),
    ("float", "-+0123456789", r"[-+]?[0-9][0-9_]*(?=[.eE])(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"),
    ("float", "-+.", r"[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
):
    for _side in (_Loader, _Dumper):  # \Z, because PyYAML is content with a match at the start
        _side.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_plain})\Z"), list(_first) or [""]
        )


def flatten_settings(data: Any, path: str = "") -> dict[str, Any]:
    """Returns nested settings as {"a.b": value}."""
    if not isinstance(data, dict):
        return {path: data}
    return {
        inner: value
        for key, part in data.items()
        for inner, value in flatten_settings(part, f"{path}.{key}" if path else str(key)).items()
    }
