"""YAML as editors read it: the core schema of YAML 1.2.2, section 10.3.2, which rewarm resembles.

Written after the specification, for tests that cannot run yaml-language-server.
"""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Plain scalars are resolved as in the core schema: `1e9` is a number, `20_000` is text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _plain in (
    ("null", "null|Null|NULL|~|"),
    ("bool", "true|True|TRUE|false|False|FALSE"),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_plain})\Z"), [None]
    )


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    base = {"0o": 8, "0x": 16}.get(node.value[:2], 10)
    return int(node.value, base)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_yaml_1_2(text: str) -> Any:
    """Returns the data of a YAML 1.2 document."""
    return yaml.load(text, _Loader)
