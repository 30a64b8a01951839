"""Whether two sides may be compared at all, and what cannot be made certain where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from latentbridge.audit.comparison.answers import Key, is_over_questions
from latentbridge.audit.comparison.runs import Run, names_of
from latentbridge.audit.comparison.sides import Pair, Side
from latentbridge.audit.eval_checks import counted
from latentbridge.audit.records import setting
from latentbridge.errors import ConfigError, DamageError

# splits of a text that metrics are of
EVALUATED = ("validation", "test")
# characters of a question in a message
SHOWN = 60


def check(pairs: Sequence[Pair]) -> None:
    """Refuse what cannot be compared: a cell with itself, other seeds, runs without an end, other texts."""
    _refuse_repeats(pairs)
    for pair in pairs:
        side, baseline = pair.side, pair.baseline
        if side.places & baseline.places:
            raise ConfigError(f"{side.name} is compared with itself; name two cells")
        if damage := list(dict.fromkeys(text for run in pair.runs for text in run.damage)):
            raise DamageError(f"{'; '.join(damage)}. What is left is not compared")
        if changed := list(dict.fromkeys(text for run in pair.runs for text in run.changed)):
            raise DamageError(f"{'; '.join(changed)}. `latentbridge verify` names all that changed")
        _check_seeds(side, baseline, is_ours=pair.is_ours)
        if lines := [f"{run.name}: {run.unended}" for run in pair.runs if run.unended]:
            raise ConfigError(
                f"{'; '.join(lines)}. What is left is not averaged: `latentbridge explain` says what a run "
                "waits for, `latentbridge retry` starts a failed one again"
            )
        _check_text(pair)


def _refuse_repeats(pairs: Sequence[Pair]) -> None:
    """A side given twice would count twice in Holm's correction, and take from what others find."""
    seen: dict[Path, str] = {}
    for side in (pair.side for pair in pairs):
        again = next((seen[path] for path in side.places if path in seen), None)
        if again is not None:
            raise ConfigError(
                f"{side.name} was given before, as {again}, and the correction for several claims would "
                "count it twice; name every side once"
            )
        seen |= dict.fromkeys(side.places, side.name)


def _check_seeds(side: Side, baseline: Side, is_ours: bool) -> None:
    """The same seeds on both sides; of published systems, a single run of each will do."""
    if len(side.runs) == len(baseline.runs) == 1 and not is_ours:
        return
    for one, other in ((side, baseline), (baseline, side)):
        if any(run.seed is None for run in one.runs):
            raise ConfigError(
                f"{one.name} tells no seed, and {other.name} has {len(other.runs)} runs, so nobody can say "
                "which of them is its partner; name one run of each"
            )
    seeds, others = ({run.seed for run in one.runs} for one in (side, baseline))
    if differing := seeds ^ others:
        lacking = [
            f"{one.name} lacks seed {', '.join(sorted(map(str, lacks), key=int))}"
            for one, lacks in ((side, others - seeds), (baseline, seeds - others))
            if lacks
        ]
        remedy = (
            "add the seed to `seeds` of that spec and launch it again, or compare runs of one seed"
            if is_ours
            else "compare cells of the same seeds, or one run of each by its folder"
        )
        raise ConfigError(
            f"{counted(list(differing), 'seed')} without a partner: {'; '.join(lacking)}. Means over other "
            f"seeds do not compare: {remedy}"
        )


def _check_text(pair: Pair) -> None:
    """Language models must have been read the same text, as far as its size and its files tell."""
    first, *others = pair.runs
    for run in others:
        for split in EVALUATED:
            sizes, files = (
                [setting(each.text, "splits", split, key) for each in (first, run)]
                for key in ("bytes", "sha256")
            )
            found = None
            if None not in sizes and sizes[0] != sizes[1]:
                found = f"has {sizes[0]:,} bytes, that of {run.name} {sizes[1]:,}"
            elif None not in files and files[0] != files[1]:
                found = f"is cut from files of sha256 {_brief(files[0])}, that of {run.name} from "
                found += _brief(files[1])
            if found:
                raise ConfigError(
                    f"the {split} text of {first.name} {found}: they were read other texts. Launch both "
                    "on one text"
                )


def _brief(digests: Sequence[str]) -> str:
    return " ".join(digest[:12] for digest in digests)


def check_questions(pair: Pair) -> None:
    """Models must have been asked the same: what only some were asked is neither averaged nor dropped."""
    first = pair.runs[0]
    for run in pair.runs[1:]:
        lines = [
            f"{len(only)} of {len(one.asked.records)} questions of {one.name} are not among the other's, "
            f"such as {_question(only[0])}"
            for one, other in ((first, run), (run, first))
            if (only := [key for key in one.asked.records if key not in other.asked.records])
        ]
        if lines:
            raise ConfigError(
                f"{first.name} and {run.name} were not asked the same: {'; '.join(lines)}. What is not "
                "shared is not averaged: evaluate both on one set"
            )


def _question(key: Key) -> str:
    """A question by its end, since many begin with one prefix, and its gold answer."""
    text = " ".join(key[0].split())
    return f"'{text if len(text) <= SHOWN else '... ' + text[-SHOWN:]}' (gold answer '{key[1]}')"


def doubts(pair: Pair, metrics: Sequence[str]) -> Iterator[str]:
    """What could not be made certain of this pair by these metrics, in words."""
    yield from _texts_not_told(pair)
    for mine, its in pair.matched:
        both = f"{mine.name} and {its.name}"
        if name := mine.shares(its):
            yield f"identical files: {both} have one {name}, byte for byte: one run, no comparison"
        elif mine.config and mine.config == its.config:
            yield f"identical config: {both} were told the same, so they are one experiment, run again"
        if not pair.is_ours and mine.seed != its.seed and None not in (mine.seed, its.seed):
            yield f"{both} are of the seeds {mine.seed} and {its.seed}: what a seed does is in the difference"
    for side in (pair.side, pair.baseline):
        for first, second in combinations(side.runs, 2):
            if name := first.shares(second):
                yield f"identical files: {first.name} and {second.name} have one {name}: no two seeds"
        for run in side.runs[1:]:
            if run.settings != side.runs[0].settings:
                both = f"{run.name} and {side.runs[0].name}"
                yield f"{both} were told more apart than the seed: no seeds of one experiment"
    yield from _flags(pair.runs, metrics)
    for metric in metrics:
        counts = {(run.metrics[metric].n > 0) for run in pair.runs}
        if len(counts) > 1:
            silent = names_of([run for run in pair.runs if not run.metrics[metric].n])
            yield f"{metric}: {silent} does not say over how many samples it is a mean"
    unread = [metric for metric in metrics if not is_over_questions(metric)]
    unread += [metric for metric in metrics if metric not in unread and not pair.has_answers]
    if unread and not pair.is_ours:
        yield f"{', '.join(unread)}: published files do not say of which text; that it is one is not checked"


def _flags(runs: Sequence[Run], metrics: Sequence[str]) -> Iterator[str]:
    """Why values may mislead, each reason once with all that it is of; then what is wrong with answers."""
    found: dict[str, tuple[dict[str, None], dict[str, Run]]] = {}
    for run in runs:
        for metric in metrics:
            for flag in run.flags.get(metric, ()):
                names, of_runs = found.setdefault(flag, ({}, {}))
                names[metric] = None
                of_runs[run.name] = run
    for flag, (names, of_runs) in found.items():
        yield f"{', '.join(names)} of {names_of(of_runs.values())}: {flag}"
    yield from (f"answers of {run.name}: {finding}" for run in runs for finding in run.findings)


def _texts_not_told(pair: Pair) -> Iterator[str]:
    """Runs whose text could not be held against the first's by its content."""
    first, *others = pair.runs
    if silent := [run for run in others if (run.text is None) != (first.text is None)]:
        yield f"only one of {_both(first, silent)} says what text it was read (text.json)"
    known = [run for run in others if first.text is not None and run.text is not None]
    if alike := [run for run in known if not _tell_files((first.text, run.text))]:
        yield (
            f"the texts of {_both(first, alike)} are of one size, which is all that is known: an older "
            "text.json does not say which files a split is cut from"
        )


def _both(first: Run, others: Sequence[Run]) -> str:
    return f"{first.name} and {names_of(others)}"


def _tell_files(texts: Sequence[dict[str, Any] | None]) -> bool:
    """Whether the content of what was evaluated is known to be one, by split or as a whole."""
    if all(setting(text, "splits", split, "sha256") for text in texts for split in EVALUATED):
        return True
    # files of runs before their splits told of them
    first, second = (setting(text, "sha256") for text in texts)
    return first is not None and first == second
