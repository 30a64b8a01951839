"""Has a plan rehearsed before it is launched: in a process of its own, for torch is never imported here."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentbridge.config import Origin, Tree
from latentbridge.errors import PreflightError
from latentbridge.job import ALL_CHECKS
from latentbridge.launch.cells.draft import SWAP
from latentbridge.launch.plan import Plan, code_hash
from latentbridge.launch.spec import empty, read_base
from latentbridge.rundir import read_json, write_json

# of a job file: what it plugs into the rehearsal
HOOK = "rehearsal"
_FOLDER = ".rehearsals"
_NOT_SETTINGS = ("resources", SWAP, "seed")
# distinct cells to rehearse: a larger plan is a grid, whose cells differ by a number
MOST = 24
# told for each progress: (checks done, all, what comes next)
Say = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Verdict:
    """What one check says of some runs."""

    check: str
    runs: tuple[str, ...]
    ok: bool
    text: str


@dataclass(frozen=True)
class Report:
    """What all checks say.

    off: checks that were not made;  seconds: None where it was known from before
    sample: of how many cells how many were rehearsed
    """

    verdicts: tuple[Verdict, ...]
    off: tuple[str, ...]
    seconds: float | None
    sample: tuple[int, int] = (0, 0)

    def of(self, run: str) -> list[Verdict]:
        """Those that concern a run."""
        return [verdict for verdict in self.verdicts if run in verdict.runs]

    def as_record(self, run: str) -> dict[str, Any]:
        """For the run's manifest."""
        found = {verdict.check: verdict.text for verdict in self.of(run)}
        record: dict[str, Any] = {"checks": found, "off": list(self.off)}
        if not found and ALL_CHECKS not in self.off:
            record["not_rehearsed"] = "{} of {} cells were".format(*self.sample)
        return record


def can_rehearse(plan: Plan) -> bool:
    """Whether the plan's job has a rehearsal."""
    module = sys.modules.get(f"latentbridge_jobs_{plan.spec.job}")
    return hasattr(module, HOOK)


def rehearse(plan: Plan, off: Sequence[str], say: Say) -> Report:
    """Rehearse all cells of a plan, or read what was found before; PreflightError where a check fails.

    off: names of checks to leave out, or `all`
    """
    if ALL_CHECKS in off:
        return Report((), (ALL_CHECKS,), None)
    request = _request(plan, off)
    text = json.dumps([request, code_hash(plan.root), sys.version], sort_keys=True, default=str)
    known = plan.root / "runs" / _FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    is_known = known.exists()
    record = read_json(known) if is_known else _conducted(request, say)
    verdicts = tuple(Verdict(v["check"], tuple(v["runs"]), v["ok"], v["text"]) for v in record["verdicts"])
    sample = (len(request["cells"]), len({cell.cell for cell in plan.cells}))
    report = Report(verdicts, tuple(off), None if is_known else record["seconds"], sample)
    _refuse(report)
    if not is_known:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_json(known, record)
    return report


def _request(plan: Plan, off: Sequence[str]) -> dict[str, Any]:
    base = empty(Origin(plan.spec_path.name, 0))
    if plan.spec.base:
        base = read_base(plan.spec.base, plan.root, Origin(plan.spec_path.name, 0))
    cells: dict[str, dict[str, Any]] = {}
    for cell in plan.cells:
        if cell.cell in cells:
            cells[cell.cell]["runs"].append(cell.name)
            continue
        overrides = Tree(cell.overrides, {}).flat()
        cells[cell.cell] = {
            "runs": [cell.name],
            # where it waits for a result: as if the first of its candidates won
            "settings": cell.config.model_dump(mode="json"),
            "overrides": [key for key in overrides if key.split(".")[0] not in _NOT_SETTINGS],
            "swap": cell.overrides.get(SWAP),
        }
    chosen = list(cells.values())
    if len(chosen) > MOST:
        # the first, and any others: at equal steps one side of a grid's last axis might always be left out
        chosen = [chosen[0], *random.Random(plan.id).sample(chosen[1:], MOST - 1)]
    return {
        "job": str(plan.root / "jobs" / f"{plan.spec.job}.py"),
        "off": sorted(off),
        "base": base.values,
        "cells": chosen,
    }


def _conducted(request: dict[str, Any], say: Say) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="latentbridge-rehearsal-") as folder:
        asked, report = Path(folder) / "request.json", Path(folder) / "report.json"
        write_json(asked, request)
        command = [sys.executable, "-m", "latentbridge.rehearsal", str(asked), str(report)]
        # on the login node's processor, whatever else it has
        environ = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            # tiny products: threads would mostly wait for each other, and where cores are shared, for others
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        with (Path(folder) / "stderr").open("w+") as errors:
            # in the folder of who launches: settings may name files from there, as the runs will read them
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                for line in process.stdout or ():
                    done, total, what = line.rstrip("\n").split(" ", 2)
                    say(int(done), int(total), what)
                code = process.wait()
            finally:
                process.kill()
            if code:
                errors.seek(0)
                said = "\n".join(errors.read().strip().splitlines()[-5:])
                raise PreflightError(
                    f"the rehearsal could not be made (exit {code}):\n{said}\nNothing was submitted"
                )
        found: dict[str, Any] = read_json(report)
    if "error" in found:
        raise PreflightError(f"{found['error']}\nNothing was submitted")
    return found


def _refuse(report: Report) -> None:
    failed = [verdict for verdict in report.verdicts if not verdict.ok]
    if not failed:
        return
    lines = [
        f"{verdict.runs[0]}{_more(verdict)}: rehearsal '{verdict.check}': {verdict.text}"
        for verdict in failed
    ]
    names = " ".join(f"--no-check {name}" for name in sorted({verdict.check for verdict in failed}))
    lines.append(
        f"Nothing was submitted. Mend it, or launch it all the same, and have that written down: {names}"
    )
    raise PreflightError("\n".join(lines))


def _more(verdict: Verdict) -> str:
    return f" (and {len(verdict.runs) - 1} more)" if len(verdict.runs) > 1 else ""
