"""Size and time of an installation, imports and `--help`, of rewarm and its peers, as a table.

    python benchmarks/install_size.py [--tools rewarm litgpt==0.5.13,requests] [--json FILE]

What follows a comma is installed too: litgpt imports requests and does not require it.
Each is installed into a new environment from files that were downloaded before, so that `install`
has no network in it. Constraints choose PyTorch's CPU build, as in .ci/run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from spread import spread

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
TOOLS = ("rewarm", "litgpt==0.5.13,requests", "axolotl==0.19.0")
COLUMNS = (
    *("tool", "direct dependencies", "packages", "download", "installed", "of it without torch"),
    *("install", "import", "`--help`", "CPU time of it"),
)
_DIRECT = """
import json, re, sys
from importlib.metadata import distributions, requires
direct = [line for line in requires(sys.argv[1]) or [] if "extra ==" not in line]
torch = [d for d in distributions() if d.metadata["Name"].lower() == "torch"]
print(json.dumps({
    "direct": len(direct),
    "packages": sum(1 for _ in distributions()),
    "torch": torch[0].version if torch else None,
    "torch_bytes": sum(f.locate().stat().st_size for d in torch for f in d.files or []
                       if f.locate().is_file()),
}))
"""


def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command, and returns its output; raises an error with the last line if it fails."""
    words = [str(word) for word in command]
    completed = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if completed.returncode:
        lines = [line for line in completed.stderr.splitlines() if "WARNING" not in line]
        raise RuntimeError(" ".join(lines[-2:]) or f"exit code {completed.returncode}")
    return completed


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files of a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def measure(tool: str, work: Path, repeats: int) -> dict[str, Any]:
    """Returns what the table has of one tool.

    Raises:
        RuntimeError: it cannot be installed.
    """
    tool, *others = tool.split(",")
    name = tool.partition("==")[0]
    source = ROOT if name == "rewarm" else tool
    files, environment = work / "files", work / "environment"
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "venv", environment])
    # pip and setuptools of the environment count for no tool.
    empty, packages_before = folder_bytes(environment), 2
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--constraint", CONSTRAINTS, "--wheel-dir", files, source, *others])
    started = time.monotonic()
    offline = ["--no-index", "--find-links", files, "--no-compile"]
    run([*pip, "install", *offline, "--constraint", CONSTRAINTS, name, *others])
    seconds = time.monotonic() - started
    facts = json.loads(run([python, "-c", _DIRECT, name]).stdout)
    size = folder_bytes(environment) - empty
    program = environment / "bin" / name
    return {
        "tool": f"rewarm {version(python)}"
        if name == "rewarm"
        else " + ".join([tool.replace("==", " "), *others]),
        "torch": facts["torch"],
        "direct": facts["direct"],
        "packages": facts["packages"] - packages_before,
        "download_bytes": folder_bytes(files),
        "bytes": size,
        "bytes_without_torch": size - facts["torch_bytes"],
        "install_seconds": seconds,
        "import_ms": [import_ms(python, name) for _ in range(repeats + 1)][1:],
        "help_seconds": [help_seconds(program) for _ in range(repeats + 1)][1:],
    }


def version(python: Path) -> str:
    """Returns the version of rewarm in an environment."""
    code = "from importlib.metadata import version; print(version('rewarm'))"
    return run([python, "-c", code]).stdout.strip()


def import_ms(python: Path, module: str) -> float:
    """Returns the milliseconds of `import module`, all that it imports included."""
    errors = run([python, "-X", "importtime", "-c", f"import {module}"], cwd="/").stderr
    (microseconds,) = re.findall(rf"\| +(\d+) \| {module}$", errors, re.MULTILINE)
    return int(microseconds) / 1000


def help_seconds(program: Path) -> tuple[float, float]:
    """Returns the seconds of `PROGRAM --help`: by the clock, and of CPU time."""
    started, before = time.monotonic(), os.times()
    run([program, "--help"], cwd="/", env={**os.environ, "COLUMNS": "80"})
    seconds, after = time.monotonic() - started, os.times()
    cpu_before, cpu_after = (t.children_user + t.children_system for t in (before, after))
    return seconds, cpu_after - cpu_before


def cells(row: dict[str, Any]) -> list[str]:
    """Returns the cells of a tool's row."""
    return [
        row["tool"],
        str(row["direct"]),
        str(row["packages"]),
        f"{row['download_bytes'] / 1e6:,.0f} MB",
        f"{row['bytes'] / 1e6:,.0f} MB",
        f"{row['bytes_without_torch'] / 1e6:,.0f} MB",
        f"{row['install_seconds']:.0f} s",
        f"{spread(row['import_ms'], 0)} ms",
        *(f"{spread(list(values), 2)} s" for values in zip(*row["help_seconds"], strict=True)),
    ]


def main() -> None:
    """Measures all tools one after the other, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tools", nargs="+", default=TOOLS, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="of imports; default: %(default)s")
    parser.add_argument("--work", type=Path, help="a folder with 10 GB; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write all measured values")
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load "
        f"{os.getloadavg()[0]:.1f}; {arguments.repeats} repeats: median (lowest to highest)\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = []
    for tool in arguments.tools:
        work = Path(tempfile.mkdtemp(prefix="install-size-", dir=arguments.work))
        try:
            rows.append(measure(tool, work, arguments.repeats))
            print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
        except RuntimeError as error:
            print(f"| {tool} | not installed: {error} |{' |' * (len(COLUMNS) - 2)}", flush=True)
        finally:
            shutil.rmtree(work)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
