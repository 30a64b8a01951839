"""Arms of layer routing: cells that differ in the learning rate alone, and which of them is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentbridge.audit.figures.sheet import Row, Sheet
from latentbridge.audit.records import CellRecords, Records, final
from latentbridge.layer_routing.config import mixer_pattern
from latentbridge.metric import Metric

CHOSEN_BY = "val_nll"
SHOWN = "Of each arm the learning rate that does best on the validation text, in the mean over seeds."


@dataclass(frozen=True)
class Arm:
    """rates: cells by learning rate, ascending;  chosen: the one whose validation loss is lowest."""

    rates: list[tuple[float, CellRecords]]
    chosen: CellRecords

    @property
    def name(self) -> str:
        """What its cells are called before their learning rate."""
        return self.chosen.name.rpartition("_lr=")[0] or self.chosen.name

    @property
    def routed(self) -> list[int]:
        """Numbers of routed layers."""
        return [layer for layer, mixer in enumerate(self.mixers) if mixer == "routed"]

    @property
    def mixers(self) -> tuple[str, ...]:
        """What reads, by layer."""
        return mixer_pattern(self.chosen.setting("mixers"))


def arms(records: Records, sheet: Sheet) -> list[Arm]:
    """In the order of the launch; an arm of which a seed is missing is named in the sheet, cell by cell."""
    groups: dict[str, list[CellRecords]] = {}
    for cell in records.layer_routing:
        groups.setdefault(cell.settings_but("optim.lr"), []).append(cell)
    found = []
    for cells in groups.values():
        lacking = {cell.name: why for cell in cells if (why := cell.gaps(CHOSEN_BY))}
        if lacking:
            others = {cell.name: "nobody can say which rate is best" for cell in cells}
            sheet.left_out |= others | lacking
            continue
        by_rate = sorted(cells, key=_rate)
        chosen = min(by_rate, key=lambda cell: _mean(cell, CHOSEN_BY))
        found.append(Arm([(_rate(cell), cell) for cell in by_rate], chosen))
    return found


def routed_arms(records: Records, sheet: Sheet) -> list[Arm]:
    """Those that have routed layers."""
    return [arm for arm in arms(records, sheet) if arm.routed]


def over_seeds(cell: CellRecords, metric: str) -> Metric | None:
    """A final metric with its interval over seeds; None where a seed lacks it."""
    return cell.over_seeds(final(metric))


def curve_rows(
    arm: Arm, metric: str, points: Sequence[dict[str, float]], layer: int | None = None
) -> list[Row]:
    """One row a point of a curve of the chosen rate."""
    own = {"cell": arm.chosen.name, "layer": layer, "metric": metric}
    return [{**own, **point, "n": len(arm.chosen.runs), "run_ids": arm.chosen.run_ids} for point in points]


def _mean(cell: CellRecords, metric: str) -> float:
    found = over_seeds(cell, metric)
    assert found is not None and found.value is not None
    return found.value


def _rate(cell: CellRecords) -> float:
    return float(cell.setting("optim", "lr") or 0.0)
