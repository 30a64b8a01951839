"""The report of a torture run: per test how often it passed, on which machine, in which time."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

REPOSITORY = Path(__file__).parents[2]


class Torture:
    """A pytest plugin: keeps only tests that are meant to be repeated, counts, and writes the report."""

    def __init__(self, report: Path | None) -> None:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        self.report = report or REPOSITORY / "benchmarks" / "results" / f"torture_{stamp}.md"
        self.outcomes: dict[str, list[bool]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.failures: list[str] = []
        # what tests measured, by name of the figure
        self.measured: dict[str, list[float]] = defaultdict(list)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if _is_meant(item)]
        config.hook.pytest_deselected(items=[item for item in items if not _is_meant(item)])
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _without_repeat(report.nodeid)
        self.seconds[name] += report.duration
        if report.when == "call":
            for figure, value in report.user_properties:
                self.measured[figure].append(value)
        if report.when == "call" or report.failed:
            self.outcomes[name].append(report.passed)
        if report.failed:
            self.failures.append(f"{report.nodeid} ({report.when}): {report.longreprtext.splitlines()[-1]}")

    def pytest_sessionfinish(self) -> None:
        self.report.parent.mkdir(parents=True, exist_ok=True)
        self.report.write_text("\n".join(self._lines()) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"report: {self.report}")

    def _lines(self) -> list[str]:
        total = sum(len(outcomes) for outcomes in self.outcomes.values())
        passed = sum(sum(outcomes) for outcomes in self.outcomes.values())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return [
            "# Torture: launches on real SLURM daemons, killed for real",
            "",
            f"`make torture`, {time.strftime('%Y-%m-%d %H:%M')}: **{passed} of {total} passed** in "
            f"{sum(self.seconds.values()) / 60:.0f} min. {os.cpu_count()} CPU cores, {memory:.0f} GiB, "
            f"{platform.system()} {platform.release()}, {_slurm_version()}, "
            f"Python {platform.python_version()}.",
            "",
            "| test | passed | seconds each |",
            "| --- | --- | --- |",
            *(
                f"| {name} | {sum(outcomes)}/{len(outcomes)} | {self.seconds[name] / len(outcomes):.1f} |"
                for name, outcomes in self.outcomes.items()
            ),
            *(["", "| measured | n | least | median | most |", f"|{' --- |' * 5}"] if self.measured else []),
            *(
                f"| {figure} | {len(values)} | {min(values):g} | {median(values):g} | {max(values):g} |"
                for figure, values in self.measured.items()
            ),
            *(
                ["", "Failures:", "", *(f"- `{failure}`" for failure in self.failures)]
                if self.failures
                else []
            ),
        ]


def _is_meant(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("repeats", "torture"))


def _without_repeat(nodeid: str) -> str:
    """`folder/test_a.py::test_b[case-7]` to `test_a: test b [case]`."""
    path, _, name = nodeid.partition("::")
    name, _, parameters = name.rstrip("]").partition("[")
    cases = "-".join(word for word in parameters.split("-") if not word.isdigit())
    words = name.removeprefix("test_").replace("_", " ")
    return f"{Path(path).stem}: {words}" + (f" [{cases}]" if cases else "")


def _slurm_version() -> str:
    try:
        return subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "no SLURM"
