"""What a run printed: the logs of one attempt on all its nodes, or why there are none."""

from __future__ import annotations

import codecs
import re
import sys
import time
from pathlib import Path

from latentbridge.errors import RunError
from latentbridge.launch.node.causes import tail_of
from latentbridge.launch.node.job_log import job_logs
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.status import WORKER_LOG, Monitor, RunStatus
from latentbridge.launch.view.explain import explain
from latentbridge.launch.view.overview import in_words
from latentbridge.launch.view.stacks import stack_files

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
POLL_S = 0.5
# between questions to SLURM: while nothing on disk says that the run may have ended, and once something does
LOOK_EVERY_S, LOOK_SOON_S = 20, 2
CHUNK_BYTES = 1 << 20


def show(launch: Launch, run_name: str, attempt: int | None, follow: bool) -> int:
    """Print stdout and stderr of one attempt, the last by default, of every node.

    follow: go on with what is added, and with later attempts, until the run has ended
    Returns 0, or 1 where there is nothing to print or a followed run is not done in the end. RunError
    names the attempts that there are.
    """
    run = launch.run(run_name)
    attempts = run.folder.list_attempts()
    chosen = _choose(run, attempts, attempt)
    if chosen is None:
        _show_never_begun(launch, run)
        if not follow:
            return EXIT_FAILED
    if follow and chosen == (attempts[-1] if attempts else None):
        return _follow(launch, run, chosen)
    assert chosen is not None
    if not Reader(run, chosen).print_new():
        _say(f"attempt {chosen.name} of {run.name} printed nothing")
        _show_what_slurm_kept(launch, run)
    for file in stack_files(chosen):
        if file.stat().st_size:
            _say(f"where a rank stood: {file}")
    return 0


class Reader:
    """Prints the logs of one attempt as they grow, with a header wherever the file changes, as tail does."""

    def __init__(self, run: PlannedRun, attempt: Path) -> None:
        self.run = run
        self.attempt = attempt
        self._offsets: dict[Path, int] = {}
        self._decoders: dict[Path, codecs.IncrementalDecoder] = {}
        self._last: Path | None = None

    def print_new(self) -> bool:
        """Print what was added since the last call; False if nothing was."""
        grown = [file for file in self._files() if file.stat().st_size > self._offsets.get(file, 0)]
        for file in grown:
            self._print_rest(file)
        sys.stdout.flush()
        return bool(grown)

    def _files(self) -> list[Path]:
        def order(file: Path) -> tuple[int, bool]:
            node = re.search(r"_node(\d+)$", file.stem)
            return int(node.group(1)) if node else 0, file.name.startswith("stderr")

        return sorted(self.attempt.glob("std*.log"), key=order)

    def _print_rest(self, file: Path) -> None:
        if file != self._last:
            _say(f"\n==> {file.relative_to(self.run.folder.path.parent)} <==")
            self._last = file
        # a character may be cut where the file ends at this moment
        decoder = self._decoders.setdefault(file, codecs.getincrementaldecoder("utf-8")("replace"))
        with open(file, "rb") as log:
            log.seek(self._offsets.get(file, 0))
            while chunk := log.read(CHUNK_BYTES):
                sys.stdout.write(decoder.decode(chunk))
            self._offsets[file] = log.tell()


def _choose(run: PlannedRun, attempts: list[Path], number: int | None) -> Path | None:
    if number is None:
        return attempts[-1] if attempts else None
    found = {int(attempt.name): attempt for attempt in attempts}
    if number not in found:
        there = f"it has {', '.join(map(str, found))}" if found else "it has none yet"
        raise RunError(f"{run.folder.path}: there is no attempt {number}; {there}")
    return found[number]


def _follow(launch: Launch, run: PlannedRun, attempt: Path | None) -> int:
    monitor, next_look = Monitor(launch), 0.0
    reader = Reader(run, attempt) if attempt else None
    try:
        while True:
            # whatever the end leaves behind is there before the state says so
            state = None
            if time.monotonic() >= next_look:
                state = next(state for state in monitor.poll() if state.name == run.name)
                next_look = time.monotonic() + (LOOK_SOON_S if _may_have_ended(run) else LOOK_EVERY_S)
            elif _may_have_ended(run):
                next_look = min(next_look, time.monotonic() + LOOK_SOON_S)
            reader = _print_on(run, reader)
            if state and _has_ended(run, state):
                _say(f"\n==> {run.name} is {state.phase}: {in_words(state)}".rstrip(": "))
                return 0 if state.phase == "done" else EXIT_FAILED
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _print_on(run: PlannedRun, reader: Reader | None) -> Reader | None:
    """Print what is new, in this attempt and in those that began since; returns the reader of the last."""
    if reader:
        reader.print_new()
    for attempt in run.folder.list_attempts():
        if reader is None or int(attempt.name) > int(reader.attempt.name):
            reader = Reader(run, attempt)
            reader.print_new()
    return reader


def _may_have_ended(run: PlannedRun) -> bool:
    attempts = run.folder.list_attempts()
    return run.folder.state is not None or bool(attempts and (attempts[-1] / "exit.json").exists())


def _has_ended(run: PlannedRun, state: RunStatus) -> bool:
    if state.phase == "stopped":
        return run.folder.state == "STOPPED"
    return state.phase in ("done", "failed", "cancelled", "held", "blocked", "lost")


def _show_never_begun(launch: Launch, run: PlannedRun) -> None:
    _say(f"{run.name} has printed nothing: it never began here")
    for line in explain(launch, run.name):
        _say(line)
    _show_what_slurm_kept(launch, run)


def _show_what_slurm_kept(launch: Launch, run: PlannedRun) -> None:
    """Print what came from outside the ranks: the batch shell's own words, or the local worker's."""
    logs = [launch.path / WORKER_LOG.format(run=run.name)]
    place = launch.ledger.latest().get(run.name)
    if place and place.task:
        logs += job_logs(launch.path, place.submission.token, place.task)
    for log in logs:
        if log.exists() and log.stat().st_size:
            _say(f"\n==> {log.relative_to(launch.path)} <==\n{tail_of(log)}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
