"""The rules of the tree: who may import whom, how large a file may grow, what a wheel holds."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "latentbridge"
HEAVY = {"torch", "transformers", "accelerate", "deepspeed", "pandas", "matplotlib", "scipy"}
WORKLOADS = {
    "translator",
    "pretrain",
    "moe_temperature",
    "layer_routing",
    "routing_bench",
    "capacity",
    "perft",
}
# what several workloads are made of, above train, data and nn
SHARED = {"lm"}
BELOW = ["config", "errors", "metric", "rundir", "trackers", "job", "train", "data", "nn"]
MAX_LINES = 500

SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "jobs").glob("*.py")) + [ROOT / "launch.py"]
LIGHT = [
    *PACKAGE.glob("*.py"),
    *(PACKAGE / "launch").rglob("*.py"),
    *PACKAGE.glob("*/config.py"),
    PACKAGE / "audit" / "eval_jsonl.py",
    # figures and papers take the rules of splits from there
    PACKAGE / "layer_routing" / "metrics.py",
    *(ROOT / "jobs").glob("*.py"),
]


def relative(path):
    return str(path.relative_to(ROOT))


def imports(path: Path, top_only: bool) -> set[str]:
    """Dotted names a file imports; top_only leaves out imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", LIGHT, ids=relative)
def test_the_light_side_imports_nothing_heavy_at_module_top(path):
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY


@pytest.mark.parametrize("path", LIGHT, ids=relative)
def test_importing_a_light_module_pulls_in_nothing_heavy_by_a_detour(path):
    script = (
        f"import runpy, sys; runpy.run_path({str(path)!r}, run_name='probe'); "
        f"heavy = {HEAVY!r} & set(sys.modules); sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((PACKAGE / "nn").glob("*.py")), ids=relative)
def test_nn_imports_nothing_of_ours_but_nn(path):
    ours = {name for name in imports(path, top_only=False) if name.startswith("latentbridge")}

    assert {name for name in ours if not name.startswith("latentbridge.nn")} == set()


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
def test_workloads_never_import_each_other(workload):
    others = {f"latentbridge.{other}" for other in WORKLOADS - {workload}}
    for path in (PACKAGE / workload).rglob("*.py"):
        assert not [n for n in imports(path, top_only=False) if n.startswith(tuple(others))], relative(path)


@pytest.mark.parametrize("below", [*BELOW, *sorted(SHARED)])
def test_what_lies_below_does_not_import_what_lies_above(below):
    above = ["latentbridge.launch", "latentbridge.audit", *(f"latentbridge.{name}" for name in WORKLOADS)]
    if below not in SHARED:
        above += [f"latentbridge.{name}" for name in SHARED]
    files = (
        [PACKAGE / f"{below}.py"] if (PACKAGE / f"{below}.py").exists() else (PACKAGE / below).rglob("*.py")
    )
    for path in files:
        assert not [n for n in imports(path, top_only=False) if n.startswith(tuple(above))], relative(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_below_500_lines_and_open_with_what_they_are(path):
    text = path.read_text()

    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "the first line must say why this file exists"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=relative)
def test_a_job_is_at_most_60_lines_and_shadows_no_library(path):
    assert len(path.read_text().splitlines()) <= 60
    assert importlib.util.find_spec(path.stem) is None


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=relative)
def test_a_script_is_at_most_20_lines(path):
    assert len(path.read_text().splitlines()) <= 20


@pytest.mark.parametrize("folder", ["jobs", "configs", "slurm", "scripts", "tests"])
def test_folders_beside_the_package_are_no_packages(folder):
    assert not list((ROOT / folder).rglob("__init__.py"))


def test_only_cli_files_and_commands_print():
    allowed = {
        "cli.py",
        "launcher.py",
        "epilogue.py",
        "own_job.py",
        "job.py",
        "worker.py",
        "finish.py",
        "display.py",
        "eval_jsonl.py",
    }
    for path in PACKAGE.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints or path.name in allowed, f"{relative(path)}:{prints}"


def test_the_wheel_would_hold_one_top_level_name():
    from setuptools import find_packages

    assert {name.split(".")[0] for name in find_packages(str(ROOT), include=["latentbridge*"])} == {
        "latentbridge"
    }
