"""Prints the lowest version of each dependency that pyproject.toml allows, one a line, for pip.

PyTorch is left out: the CPU builds of its lowest release are not in the package index.
"""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "jsonschema")

extras = PROJECT["optional-dependencies"]
requirements = [*PROJECT["dependencies"], *extras["parquet"], *extras["http"]]
requirements += [line for line in extras["dev"] if re.split("[>;]", line)[0] in TESTS]
for requirement in requirements:
    name, lowest = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
