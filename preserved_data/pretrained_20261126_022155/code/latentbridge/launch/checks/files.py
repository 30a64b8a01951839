"""What a launch needs on disk: a run folder to write, an interpreter, setup files, and paths in configs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from latentbridge.config import Origin
from latentbridge.launch.cluster import Cluster

# what worker and jobs import on a node; looked up, not imported
NEEDED = ("torch", "deepspeed", "accelerate", "pydantic", "yaml", "rich", "safetensors", "submitit")
NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
LOW_SPACE_BYTES = 1 << 30
PROBE_PATIENCE_S = 20


def find_missing(cluster: Cluster, profile: str, runs: Path) -> Iterator[str]:
    """What runs under the folder `runs` lack on this disk: the right to write, interpreter, setup files."""
    yield from _unwritable(runs)
    yield from _interpreter(cluster, profile)
    yield from _setup_files(cluster, profile)


def find_risks(cluster: Cluster, profile: str, runs: Path) -> Iterator[str]:
    """What may go wrong later: a disk that is nearly full, folders that nodes may not see."""
    free = shutil.disk_usage(_nearest_folder(runs)).free
    if free < LOW_SPACE_BYTES:
        yield f"{runs}: {free >> 20} MiB are left on this disk; make room for checkpoints and logs"
    if cluster.executor != "slurm":
        return
    for what, path in (("run folder", runs), ("interpreter", interpreter(cluster))):
        local = [*NODE_LOCAL, *([os.environ["TMPDIR"]] if os.environ.get("TMPDIR") else [])]
        if path and any(path.absolute().is_relative_to(folder) for folder in local):
            yield f"{profile}: {what} {path}: other nodes may not see it; use a folder that all nodes share"


def interpreter(cluster: Cluster) -> Path | None:
    """The Python that nodes will run; None for a bare name that is not on PATH here."""
    if cluster.python is None:
        return Path(sys.executable)
    if "/" in cluster.python:
        return Path(cluster.python)
    found = shutil.which(cluster.python)
    return Path(found) if found else None


def _nearest_folder(path: Path) -> Path:
    """`path` or the first above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _unwritable(runs: Path) -> Iterator[str]:
    folder = _nearest_folder(runs)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        yield f"{runs}: not writable ({error.strerror}: {folder}); make it a folder you may write"


def _interpreter(cluster: Cluster, profile: str) -> Iterator[str]:
    python = interpreter(cluster)
    place = f"{profile}: python" if cluster.python else "this interpreter"
    if python is None:
        # a setup line such as `module load python` may bring it
        if not cluster.setup:
            yield f"{place} '{cluster.python}' is not on PATH; give its full path"
        return
    if not os.access(python, os.X_OK) or python.is_dir():
        yield f"{place} '{python}' is not a program here; give the full path of an interpreter"
        return
    probe = f"import importlib.util as u; print(*(n for n in {NEEDED!r} if u.find_spec(n) is None))"
    try:
        answer = subprocess.run(
            [python, "-c", probe], capture_output=True, text=True, timeout=PROBE_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"{place} '{python}' does not run ({error}); give another"
        return
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        yield f"{place} '{python}' is not a working Python 3 ({last}); give another"
    elif missing := answer.stdout.split():
        yield f"{place} '{python}' lacks {', '.join(missing)}; install latentbridge there, or give another"


def _setup_files(cluster: Cluster, profile: str) -> Iterator[str]:
    for line in cluster.setup:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError as error:
            yield f"{profile}: setup line `{line}` cannot be read by a shell ({error}); correct it"
            continue
        for command, argument in pairwise(words):
            path = os.path.expanduser(os.path.expandvars(argument))
            # a bare name is searched for on PATH, and other variables are known on the node only
            if command in ("source", ".") and "/" in path and "$" not in path and not os.path.exists(path):
                yield f"{profile}: setup line `{line}` reads {path}, which does not exist; correct the path"


def find_missing_paths(
    configs: Mapping[str, Mapping[str, Any]], origin: Callable[[str, str], Origin]
) -> Iterator[str]:
    """One line for each path in configs (by run name, then dotted key) that does not exist.

    origin: where a run's key was written
    """
    users: dict[tuple[str, str], list[str]] = {}
    for run, config in configs.items():
        for key, value in config.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str) and item.startswith(("/", "./", "../", "~/")):
                    users.setdefault((key, item), []).append(run)
    for (key, path), runs in users.items():
        if not os.path.exists(os.path.expanduser(path)):
            where = f"{origin(runs[0], key)}: {name_runs(runs)}"
            yield f"{where}: {key} is '{path}', which does not exist here; correct the path"


def name_runs(runs: list[str]) -> str:
    """The first of some runs, and how many more there are."""
    return f"run '{runs[0]}'" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
