"""Imports go downwards only, layer 0 knows no Dask and no Zarr, and imports stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import dasknmf

ROOT = Path(dasknmf.__file__).parent
LAYERS = [
    {"numerics"},
    {"parallel", "storage"},
    {
        "passes",
        "ensemble",
        "history",
        "compression",
        "checkpointing",
        "packing",
        "settings",
        "signals",
        "snapshots",
        "state",
        "state_study",
        "studying",
    },
    {
        "estimator",
        "study",
        "criteria",
        "refitting",
        "sharing",
        "path",
        "parameters",
        "partial",
        "parts",
        "results",
        "resuming",
        "resuming_study",
        "progress",
        "validation",
        "reading",
        "exports",
        "events",
    },
    {
        "cli",
        "cli_cluster",
        "cli_plan",
        "cli_ranks",
        "cli_run",
        "cli_submit",
        "plotting",
        "report",
        "report_fit",
        "report_study",
        "__init__",
    },
]
OPENED = {
    ("reading", "report_fit"),
    ("study", "report_study"),
    ("study", "plotting"),
    ("path", "plotting"),
}  # by a method, when it is called: never by loading the package
ALLOWED_BELOW = {"numpy", "scipy", "numba", "dasknmf"}  # layer 0, beside the standard library


def level(parts):
    """Layer of a module of the package, given its path below dasknmf/."""
    for number, names in enumerate(LAYERS):
        if parts[0] in names:
            return number
    raise AssertionError(f"{'/'.join(parts)} belongs to no layer: add it to LAYERS")


def imported(path):
    """Every module that a file imports, functions' own imports and type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "dasknmf":
                yield from (f"dasknmf.{alias.name}" for alias in node.names)
            else:
                yield node.module


def files():
    return sorted(ROOT.rglob("*.py"))


def test_imports_go_downwards_only():
    checked = 0
    for path in files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        for name in imported(path):
            target = name.split(".")[1:]
            if not name.startswith("dasknmf.") or parts == ("__init__",):
                continue
            known = (ROOT / target[0]).exists() or (ROOT / f"{target[0]}.py").exists()
            if not known:
                continue  # a name that __init__ gives out
            checked += 1
            leaf = level(target) == len(LAYERS) - 1
            assert leaf or level(target) <= level(parts), f"{path} imports {name}"
            allowed = level(parts) == len(LAYERS) - 1 or (parts[0], target[0]) in OPENED
            assert not leaf or allowed, f"{path} imports the leaf {name}"
    assert checked > 50


def test_layer_0_needs_numpy_scipy_and_numba_only():
    for path in (ROOT / "numerics").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top in ALLOWED_BELOW | set(sys.stdlib_module_names), f"{path} imports {name}"


def test_importing_the_package_loads_no_compiler_no_scheduler_and_no_extras():
    code = (
        "import sys, dasknmf; heavy = {'numba', 'distributed', 'matplotlib', 'anndata'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_files_fit_one_sitting():
    for path in files():
        assert len(path.read_text(encoding="utf8").splitlines()) <= 400, path
