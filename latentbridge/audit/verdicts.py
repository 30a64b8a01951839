"""A verdict between two cells, and its words: tables, pages, papers and indexes all take them from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from latentbridge.metric import Metric

Outcome = Literal["won", "tied", "lost", "void", "-"]


class Words(NamedTuple):
    """An outcome inside a sentence, and as a sentence without its stop; {} is whom it was held against."""

    brief: str
    sentence: str


WORDS: dict[Outcome, Words] = {
    "won": Words("won", "It is better than {}, beyond the spread of the seeds"),
    "tied": Words("tied", "The seeds cannot tell it from {}"),
    "lost": Words("lost", "It is worse than {}, beyond the spread of the seeds"),
    "void": Words("not decided", "It could not be judged against {}"),
    "-": Words("neither better nor worse", "It is neither better nor worse than {}"),
}
# in brackets below a title or a caption
TIED = "tied: the seeds cannot tell"
UNJUDGED = (
    '"-": neither less nor more of such a metric is better, so nobody wins or loses by it; it has no p, '
    "and the correction of others does not count it"
)


def p_text(p: float | None) -> str:
    """Three digits; "-" where no p was made."""
    return "-" if p is None else f"{p:.3g}"


def difference_text(difference: Metric) -> str:
    """With its interval; of a void one, the reason on one line."""
    return str(difference) if difference.value is not None else " ".join((difference.void or "").split())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one cell did against a baseline, as the spec asked before the run; p is Holm-corrected.

    outcome: "-" where neither less nor more of the metric is better, and there is no p
    chosen: where the spec names the best of several, in words which and why
    """

    cell: str
    baseline: str
    metric: str
    outcome: Outcome
    difference: Metric
    p: float | None = None
    by: str = ""  # "3 pairs" of seeds where both have the same ones, else "Welch"; empty where void
    chosen: tuple[str, ...] = ()

    @property
    def is_void(self) -> bool:
        """Whether nothing was decided; the difference says why."""
        return self.outcome == "void"

    @property
    def line(self) -> str:
        """Who did how against whom, by what: one line of a list."""
        found = f"void ({difference_text(self.difference)})" if self.is_void else str(self.difference)
        p = "" if self.p is None else f", p {p_text(self.p)}"
        return f"{self.cell} {self.outcome} against {self.baseline} ({self.metric} {found}{p})"

    def sentence(self, baseline: str) -> str:
        """The outcome alone, a void one with its reason; baseline: what readers know the other side as."""
        text = WORDS[self.outcome].sentence.format(baseline)
        return f"{text}: {difference_text(self.difference)}" if self.is_void else text

    def as_record(self) -> dict[str, Any]:
        """Plain data; `chosen` where anybody was."""
        record = {**vars(self), "difference": self.difference.as_record()}
        if not record.pop("chosen"):
            return record
        return {**record, "chosen": list(self.chosen)}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Verdict:
        """The inverse of `as_record`."""
        difference, chosen = Metric.from_record(record["difference"]), tuple(record.get("chosen", ()))
        return Verdict(**{**record, "difference": difference, "chosen": chosen})
