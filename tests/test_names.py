"""One name means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import rewarm

ROOT = Path(rewarm.__file__).parent

# The same operation in PyTorch, in Triton and in fp8: `Kernels` chooses among them.
IMPLEMENTATIONS = {
    "cross_entropy",
    "gelu",
    "linear_layer",
    "mlp",
    "norms",
    "rotary",
    "round_to_fp8",
}


def public_names(path: Path) -> set[str]:
    """The classes, functions and constants that a module defines for others."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_no_public_name_is_defined_in_two_modules():
    modules = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for name in public_names(path):
            modules[name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in modules.items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in IMPLEMENTATIONS} == {}
    assert twice.keys() == IMPLEMENTATIONS
    for paths in twice.values():
        assert all(path.startswith("model/kernels/") for path in paths)
