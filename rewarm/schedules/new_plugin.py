"""Writes a new schedule plug-in: a distribution that installs and passes its tests.

```
rewarm-NAME/
    pyproject.toml             the entry point by which rewarm finds the class
    rewarm_NAME.py             the class
    README.md                  how to use it
    tests/test_rewarm_NAME.py  a test of the contract, and hand-computed values
```
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from rewarm import schedules
from rewarm.errors import ScheduleError

_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "rewarm-{name}"
version = "0.1.0"
description = "The {name} learning-rate schedule for rewarm."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["rewarm>={rewarm}"]

[project.entry-points."rewarm.schedules"]
{name} = "rewarm_{module}:{kind}"
"""

_MODULE = '''\
"""The {name} learning-rate schedule, as a plug-in of rewarm."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from rewarm import Rate, Schedule, Span, linear


class {kind}(Schedule):
    """Rises linearly to the peak, then falls linearly to the minimum."""

    contract: ClassVar[int] = {contract}
    name: Literal["{name}"] = "{name}"
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The peak learning rate."""
    min_lr: Annotated[Rate, Field(examples=[3e-5])]
    """The learning rate at the end of the run, kept afterwards."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """Length of the warm-up: a share of the run, tokens or steps."""

    def __call__(self, progress: float) -> float:
        """Returns the learning rate of the step that ends at `progress`, in (0, 1]."""
        if progress < self.warmup:
            return linear(progress / self.warmup, 0.0, self.peak_lr)
        x = (min(progress, 1) - self.warmup) / (1 - self.warmup)
        return linear(x, self.peak_lr, self.min_lr)

    def marks(self) -> dict[str, float]:
        """Returns notable points of the curve as {{label: progress}}."""
        return {{"end of warm-up": float(self.warmup)}}
'''

_README = """\
# rewarm-{name}

The {name} learning-rate schedule for rewarm.

```sh
pip install ./rewarm-{name}
rewarm schedules {name}
```

The second command lists the settings. In a recipe:

```yaml
schedule: {{name: {name}, peak_lr: 3e-4, min_lr: 3e-5}}
```
"""

_TEST = """\
import pytest
from rewarm import schedules
from rewarm.testing import check_schedule


def test_contract():
    check_schedule("{name}")


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.005, 1.5e-4), (0.01, 3e-4), (0.505, 1.65e-4), (1.0, 3e-5), (2.0, 3e-5)],
)
def test_hand_computed_values(progress, rate):
    curve = schedules.find("{name}")(peak_lr=3e-4, min_lr=3e-5)
    assert curve(progress) == pytest.approx(rate, rel=1e-12)
"""


def write_plugin(name: str, parent: Path) -> list[Path]:
    """Writes the distribution `rewarm-NAME` into a folder; returns the paths of its files.

    Raises:
        ScheduleError: the name is invalid or already used, or the files cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ScheduleError(
            f"{name!r} cannot be a schedule's name; use lower-case letters, digits and single "
            "hyphens, such as my-schedule"
        )
    if existing := [plugin for plugin in schedules.installed() if plugin.name == name]:
        raise ScheduleError(
            f"{existing[0].distribution} {existing[0].version} already offers a schedule named "
            f"{name!r}; choose another name"
        )
    module = name.replace("-", "_")
    values = {
        "name": name,
        "module": module,
        "kind": "".join(part.capitalize() for part in name.split("-")),
        "contract": schedules.CONTRACT,
        "rewarm": version("rewarm"),
    }
    root = parent / f"rewarm-{name}"
    files = {
        root / "pyproject.toml": _PYPROJECT,
        root / f"rewarm_{module}.py": _MODULE,
        root / "README.md": _README,
        root / "tests" / f"test_rewarm_{module}.py": _TEST,
    }
    try:
        root.mkdir(parents=True)
        for path, template in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(template.format(**values), encoding="utf-8")
    except FileExistsError:
        raise ScheduleError(f"{root}: already exists; choose another name, or remove it") from None
    except OSError as error:
        raise ScheduleError(f"{root}: cannot be written: {error.strerror}") from None
    return list(files)
