"""A launch that has ended, what lies in a folder, and processes that are killed while they write."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentbridge.launch.archive import Problem, verify
from latentbridge.metric import proportion
from latentbridge.rundir import RunDir, append_jsonl, write_json

NAME = "demo_20261122_101500"


def ended_launch(runs: Path) -> Path:
    """A launch of two finished runs and one that failed."""
    folder = runs / NAME
    names = ("a-s1", "a-s2", "b-s1")
    runs = [{"name": n, "cell": n[0], "seed": int(n[-1]), "id": f"id{n}", "folder": n} for n in names]
    for name in names:
        run = RunDir(folder / name)
        run.path.mkdir(parents=True)
        run.config.write_text("seed: 1\n")
        (run.new_attempt() / "stdout.log").write_text(f"{name} began\n")
        append_jsonl(
            run.metrics_log,
            {"step": 4, "label": "final", "metrics": {"x": proportion(3, 7).as_record()}},
        )
        for kind, size in (("best-4", 300), ("last-5", 5000)):
            (run.checkpoints / kind).mkdir(parents=True)
            (run.checkpoints / kind / "model.safetensors").write_bytes(bytes(size))
            (run.checkpoints / kind.split("-")[0]).symlink_to(kind)
        run.mark("FAILED" if name == "b-s1" else "DONE", {"cause": "oom"} if name == "b-s1" else {})
    write_json(folder / "plan.json", {"name": "demo", "runs": runs, "compare": []})
    (folder / "code" / "latentbridge").mkdir(parents=True)
    (folder / "code" / "latentbridge" / "metric.py").write_text("Z95 = 1.96\n")
    (folder / "code" / ".gitignore").write_text("runs/\n")
    (folder / "cache").mkdir()
    (folder / "cache" / "states.bin").write_bytes(bytes(9000))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, links not followed, with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def named(problems: list[Problem]) -> set[str]:
    return {problem.path for problem in problems}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def kill_points(action: Callable[[], Any]) -> list[int]:
    """File operations of `action`, by number: 14 spread over all, and the last 8, where names change."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = _count(lambda number: None)
        action()
        os.write(writer, str(seen[0]).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    total = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    spread = [1 + index * (total - 1) // 14 for index in range(14)]
    return sorted({*spread, *range(total - 7, total + 1)})


def kill(action: Callable[[], Any], operation: int) -> None:
    """Act in a child that dies by SIGKILL at its n-th file operation."""
    child = os.fork()
    if child == 0:
        _count(lambda number: number == operation and os.kill(os.getpid(), signal.SIGKILL))
        action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _count(then: Callable[[int], Any]) -> list[int]:
    """Call `then` with the number of every file operation of this process, before it is done."""
    seen = [0]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
            seen[0] += 1
            then(seen[0])

    sys.addaudithook(count)
    return seen


def whole_copies(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not verify(path)] if root.exists() else []
