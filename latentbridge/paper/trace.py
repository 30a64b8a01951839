"""Where each number of a paper comes from: run id, file and its sha256."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latentbridge.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """One file of one run; run and file begin with the name of the launch, id is the run's config hash."""

    run: str
    id: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Number:
    """A number as it is printed: `what` says how it was made of the values in its sources."""

    id: str
    text: str
    value: float
    what: str
    sources: tuple[Source, ...]

    @property
    def markdown(self) -> str:
        """The number, linked to its row in the appendix."""
        return f"[{self.text}](#{self.id})"

    def __str__(self) -> str:
        return self.markdown

    def explain(self) -> str:
        """The number and its files, for a terminal."""
        lines = [f"{self.id}: {self.text} = {self.value!r}", f"  {self.what}"]
        lines += [f"  run {s.id} {s.file}\n      sha256 {s.sha256}" for s in self.sources]
        return "\n".join(lines)


class Trace:
    """Every number that was printed, in the order of its first use; equal ones share an id."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], Number] = {}

    def number(self, text: str, value: float, what: str, sources: Sequence[Source]) -> Number:
        """The number to print; one that says the same as an earlier one is that one."""
        key = (text, what)
        if key not in self._numbers:
            self._numbers[key] = Number(f"n{len(self._numbers) + 1}", text, value, what, tuple(sources))
        return self._numbers[key]

    @property
    def numbers(self) -> list[Number]:
        """All so far."""
        return list(self._numbers.values())

    def find(self, name: str) -> Number:
        """A number by its id."""
        known = {number.id: number for number in self.numbers}
        if name not in known:
            raise ConfigError(f"no number '{name}'; this paper has n1 to n{len(known)}")
        return known[name]

    def as_record(self) -> dict[str, Any]:
        """Plain data for numbers.json; files by the names that numbers call them."""
        names = self._files()
        return {
            "numbers": [
                {
                    "id": n.id,
                    "text": n.text,
                    "value": n.value,
                    "what": n.what,
                    "files": [names[s] for s in n.sources],
                }
                for n in self.numbers
            ],
            "files": {name: asdict(source) for source, name in names.items()},
        }

    def _files(self) -> dict[Source, str]:
        files = dict.fromkeys(source for number in self.numbers for source in number.sources)
        return {source: f"f{place}" for place, source in enumerate(files, start=1)}

    def appendix(self) -> str:
        """Markdown: a row a number, and below a row a file."""
        names = self._files()
        lines = ["| number | as printed | what it is | files |", "| --- | --- | --- | --- |"]
        for number in self.numbers:
            own = " ".join(f"[{names[source]}](#{names[source]})" for source in number.sources)
            lines.append(f'| <a id="{number.id}"></a>{number.id} | {number.text} | `{number.what}` | {own} |')
        lines += ["", "| file | run id | path | sha256 |", "| --- | --- | --- | --- |"]
        for source, name in names.items():
            lines.append(
                f'| <a id="{name}"></a>{name} | `{source.id}` | `{source.file}` | `{source.sha256}` |'
            )
        return "\n".join(lines)
