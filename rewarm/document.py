"""YAML in, data and the place of every key out, so that an error can point at its line.

Reads through PyYAML's safe nodes only. What a recipe has no use for is refused: aliases (and the
"billion laughs" with them), repeated keys, keys that are not text, documents too large or too deep.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rewarm.errors import RecipeError

Location = tuple[str | int, ...]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers and words: `3e-4` is a number, `on`, `no` and `1:30` are text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|false", re.I), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
    list("-+0123456789."),
)


class Document:
    """A parsed YAML document: its data, and where in the source each part of it stands."""

    def __init__(self, text: str, source: str) -> None:
        """Parses `text`; `source` is the name that errors show.

        Raises:
            RecipeError: it is not YAML, or holds what a recipe may not hold.
        """
        self.source = source
        self._places: dict[Location, str] = {}
        if len(text.encode()) > _MAX_BYTES:
            raise RecipeError([f"{source}: larger than {_MAX_BYTES:,} bytes; is it a recipe?"])
        self._seen: set[int] = set()
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            self.data: Any = self._read(loader, root, ()) if root else {}
        except yaml.reader.ReaderError as error:
            raise RecipeError(
                [f"{source}: not text: {error.reason} at position {error.position}"]
            ) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
            what = "; ".join(part for part in (error.context, error.problem) if part)
            raise RecipeError([f"{where}: not valid YAML: {what}"]) from None
        except (ValueError, OverflowError, RecursionError) as error:
            raise RecipeError([f"{source}: not valid YAML: {error}"]) from None
        if not isinstance(self.data, dict):
            raise RecipeError(
                [f"{self.where(())}: should be settings (`key: value` lines), got {self.data!r}"]
            )

    @classmethod
    def load(cls, path: Path) -> Document:
        """Returns the document in a file.

        Raises:
            RecipeError: the file cannot be read, or is not a valid document.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise RecipeError([f"{path}: no such file; a recipe is a YAML file"]) from None
        except IsADirectoryError:
            raise RecipeError([f"{path}: is a folder; a recipe is a YAML file"]) from None
        except UnicodeDecodeError as error:
            raise RecipeError([f"{path}: not UTF-8 text: {error.reason}"]) from None
        except OSError as error:
            raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None

    def set(self, assignment: str) -> None:
        """Overrides one setting, written `a.b=value` with a YAML value.

        Raises:
            RecipeError: it is not an assignment, or leads through something that has no settings.
        """
        path, equals, written = assignment.partition("=")
        keys = path.split(".")
        source = f"--set {assignment}"
        if not equals or not all(keys):
            raise RecipeError([f"{source}: should be written --set section.setting=value"])
        value = Document(f"value: {written}", source).data["value"]
        parent = self.data
        for depth, key in enumerate(keys[:-1]):
            if key not in parent:
                self._places[tuple(keys[: depth + 1])] = source
            parent = parent.setdefault(key, {})
            if not isinstance(parent, dict):
                raise RecipeError([f"{source}: {'.'.join(keys[: depth + 1])} has no settings"])
        parent[keys[-1]] = value
        self._places = {k: v for k, v in self._places.items() if k[: len(keys)] != tuple(keys)}
        self._places[tuple(keys)] = source

    def where(self, location: Location) -> str:
        """Returns `file:line:column` of a setting, or of the nearest part around it."""
        while location and location not in self._places:
            location = location[:-1]
        return self._places.get(location, f"{self.source}:1:1")

    def _read(self, loader: _Loader, node: yaml.Node, at: Location) -> Any:
        """Returns a node's data; records where each key (for values in lists, each value) is."""

        def place(mark: yaml.Mark) -> str:
            return f"{self.source}:{mark.line + 1}:{mark.column + 1}"

        def refuse(marked: yaml.Node, why: str) -> RecipeError:
            path = ".".join(map(str, at))
            return RecipeError([f"{place(marked.start_mark)}: {path + ': ' if path else ''}{why}"])

        # A recipe's own node can be met twice only through an alias.
        if id(node) in self._seen:
            raise refuse(node, "aliases (*name) are not supported; write the value out")
        self._seen.add(id(node))
        self._places.setdefault(at, place(node.start_mark))
        if len(at) > _MAX_DEPTH:
            raise refuse(node, f"nested deeper than {_MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            data: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node)
                if not isinstance(key, str):
                    raise refuse(key_node, f"a setting's name should be text, got {key!r}")
                if key in data:
                    raise refuse(key_node, f"{key} is written twice; keep one")
                self._places[(*at, key)] = place(key_node.start_mark)
                data[key] = self._read(loader, value_node, (*at, key))
            return data
        if isinstance(node, yaml.SequenceNode):
            return [self._read(loader, one, (*at, i)) for i, one in enumerate(node.value)]
        return loader.construct_object(node)
