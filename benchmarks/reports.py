"""What benchmarks share: times on a device, and a report that is on disk line by line, whatever ends them."""

from __future__ import annotations

import datetime
import gc
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


class Report:
    """Lines that are printed, and added to FOLDER/<name>_<date>.md at once, after those of earlier calls."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}_{datetime.date.today()}.md"
        self._failed: list[str] = []

    def say(self, line: str = "") -> None:
        """One line."""
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")

    def table(self, *names: str) -> None:
        """The head of a table."""
        self.say()
        self.row(*names)
        self.say("|" + " --- |" * len(names))

    @contextmanager
    def attempt(self, *cells: object) -> Iterator[None]:
        """What fails in here is told in a row of `cells`, and what comes after it goes on; see `finish`."""
        try:
            yield
        # whatever a compiler, a kernel or a full card raises
        except Exception as failure:
            traceback.print_exc()
            first = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            self._failed.append(f"{', '.join(str(cell) for cell in cells)}: {first}")
            self.row(*cells, f"failed: {first.replace('|', '/')}")
            # frames hold what was on the card
            traceback.clear_frames(failure.__traceback__)
        if torch.cuda.is_available():
            # a recorded step and its memory are in circles
            gc.collect()
            torch.cuda.empty_cache()

    def finish(self) -> None:
        """End the process with an error where an attempt failed."""
        if self._failed:
            raise SystemExit("\n".join(["not all was measured:", *self._failed]))

    def row(self, *cells: object) -> None:
        """One row of it."""
        self.say("| " + " | ".join(str(cell) for cell in cells) + " |")


def card() -> str:
    """What is measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def milliseconds(work: Callable[[], object], rounds: int, warm: int = 3) -> list[float]:
    """Of each round, sorted: between two events on a GPU, else of processor time."""
    for _ in range(warm):
        work()
    if not torch.cuda.is_available():
        return sorted(1000 * _processor_s(work) for _ in range(rounds))
    torch.cuda.reset_peak_memory_stats()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in pairs)


def _processor_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def spread(times: list[float]) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})"


def peak_gib() -> str:
    """Of what was measured last; on a GPU."""
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if torch.cuda.is_available() else ""
