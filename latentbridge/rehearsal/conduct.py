"""Rehearses a plan: every check on every distinct computation, then the cells against each other."""

from __future__ import annotations

import importlib.util
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latentbridge.config import JobConfig, Origin, Tree, build, config_id, dump
from latentbridge.errors import ConfigError, LatentbridgeError
from latentbridge.rehearsal.ablation import Ablation, Cell
from latentbridge.rehearsal.checks import CHECKS
from latentbridge.rehearsal.contract import Caught, Rehearsal, Stage
from latentbridge.rehearsal.fingerprint import Fingerprint
from latentbridge.train.first_minute import FIRST_MINUTE

# the check of cells against each other
ABLATION = "ablation"
# told for each progress: (checks done, all, what comes next)
Say = Callable[[int, int, str], None]


def conduct(request: dict[str, Any], folder: Path, say: Say) -> dict[str, Any]:
    """Verdicts of all checks.

    request: `job` (path of its file), `off` (checks not to make), `base` (settings that all cells start from)
    and `cells`: `runs`, `settings`, `overrides`, `swap`;  folder: a place for tiny models
    """
    started = time.perf_counter()
    module = _load(Path(request["job"]))
    rehearsal: Rehearsal = module.rehearsal()
    _refuse_unknown(request["off"], rehearsal)
    plan = _Plan(rehearsal, module.Config, folder, request, say)
    verdicts = list(plan.verdicts())
    return {"verdicts": verdicts, "off": request["off"], "seconds": time.perf_counter() - started}


def _refuse_unknown(off: Sequence[str], rehearsal: Rehearsal) -> None:
    known = [check.name for check in (*CHECKS, *rehearsal.checks)]
    known += [ABLATION, FIRST_MINUTE]
    if unknown := [name for name in off if name not in known]:
        raise ConfigError(
            f"--no-check {unknown[0]}: there is no such check; checks: {', '.join(known)}, or all"
        )


class _Plan:
    def __init__(
        self,
        rehearsal: Rehearsal,
        config_class: type[JobConfig],
        folder: Path,
        request: dict[str, Any],
        say: Say,
    ) -> None:
        self._rehearsal, self._config_class = rehearsal, config_class
        self._models = folder / "models"
        self._scratch = Path(tempfile.mkdtemp(prefix="stage-", dir=folder))
        self._base, self._off, self._say = request["base"], set(request["off"]), say
        self._stages: dict[str, Stage] = {}
        self._fingerprints: dict[str, Fingerprint] = {}
        self._cells = [
            Cell(
                runs=cell["runs"],
                settings=dump(self._built(cell["settings"])),
                small=self._small(self._built(cell["settings"])),
                overrides=cell["overrides"],
                swap=cell["swap"],
            )
            for cell in request["cells"]
        ]

    def verdicts(self) -> Iterator[dict[str, Any]]:
        checks = [check for check in (*CHECKS, *self._rehearsal.checks) if check.name not in self._off]
        by_stage: dict[str, list[Cell]] = {}
        for cell in self._cells:
            by_stage.setdefault(config_id("", cell.small), []).append(cell)
        total = len(checks) * len(by_stage) + len(self._cells)
        done = 0
        for cells in by_stage.values():
            stage = self._stage(*(self._built(cell.settings) for cell in cells))
            runs = [run for cell in cells for run in cell.runs]
            for check in checks:
                self._say(done, total, f"{check.name} of {runs[0]}")
                yield _verdict(check.name, runs, partial(check.prove, stage))
                done += 1
        if ABLATION in self._off:
            return
        ablation = Ablation(
            self._config_class,
            self._fingerprint,
            self._small,
            self._rehearsal.engineering(),
            tuple(self._rehearsal.protocol(self._built(self._cells[0].settings))),
        )
        twins = {id(cell): (other, keys) for other, cell, keys in ablation.same(self._cells)}
        for cell in self._cells:
            self._say(done, total, f"overrides of {cell.runs[0]}")
            yield _verdict(ABLATION, cell.runs, partial(_judge, cell, ablation, twins, self._base))
            done += 1

    def _built(self, settings: dict[str, Any]) -> JobConfig:
        return build(self._config_class, Tree(settings, {(): Origin("rehearsal", 0)}))

    def _shrunk(self, config: JobConfig) -> JobConfig:
        # one seed for all: runs that differ by it alone are one computation
        small: JobConfig = self._rehearsal.shrink(config, self._models).model_copy(update={"seed": 0})
        return small

    def _small(self, config: JobConfig) -> dict[str, Any]:
        return dump(self._shrunk(config))

    def _stage(self, *configs: JobConfig) -> Stage:
        """configs: which come to one when they are shrunk."""
        small = self._shrunk(configs[0])
        name = config_id("", small)
        if name not in self._stages:
            self._stages[name] = Stage(self._rehearsal, small, self._scratch / name, configs)
        return self._stages[name]

    def _fingerprint(self, config: JobConfig) -> Fingerprint:
        name = config_id("", config.model_copy(update={"seed": 0}))
        if name not in self._fingerprints:
            protocol = self._rehearsal.protocol(config)
            self._fingerprints[name] = Fingerprint(self._stage(config), protocol)
        return self._fingerprints[name]


def _judge(
    cell: Cell, ablation: Ablation, twins: dict[int, tuple[Cell, list[str]]], base: dict[str, Any]
) -> str:
    if id(cell) in twins:
        other, keys = twins[id(cell)]
        raise Caught(
            f"it computes what '{other.runs[0]}' does: they differ by {', '.join(keys)}, which changes "
            "nothing in these runs. They are one experiment under two names"
        )
    if idle := list(ablation.idle(cell, base)):
        raise Caught(
            f"{', '.join(idle)} changes nothing in this run; drop it, or find out what switches it off"
        )
    count = len(cell.overrides) + bool(cell.swap)
    return f"{count} overrides, each with an effect" if count else "the base as it is"


def _verdict(check: str, runs: Sequence[str], prove: Callable[[], str]) -> dict[str, Any]:
    try:
        text, is_good = prove(), True
    except (Caught, LatentbridgeError) as found:
        text, is_good = str(found), False
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"it breaks: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        is_good = False
    return {"check": check, "runs": list(runs), "ok": is_good, "text": text}


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"rehearsed_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
