"""All mistakes of one spec, gathered in one pass and told in one go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from latentbridge.config import Complaint, Origin
from latentbridge.errors import ConfigError


class Complaints:
    """Mistakes and the cells that have them; one that many cells share is told once."""

    def __init__(self) -> None:
        self._cells: dict[tuple[Origin | None, str], dict[str, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._cells)

    def add(self, found: Complaint | ConfigError, cell: str | None = None) -> None:
        """Note one mistake, of one cell or of the spec as a whole."""
        key = (found.origin, found.text) if isinstance(found, Complaint) else (None, str(found))
        cells = self._cells.setdefault(key, {})
        if cell is not None:
            cells[cell] = None

    def extend(self, found: Iterable[Complaint], cell: str | None = None) -> None:
        """Note several."""
        for complaint in found:
            self.add(complaint, cell)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Note the ConfigError that ends the block, if one does, and go on behind it."""
        try:
            yield
        except ConfigError as error:
            self.add(error)

    def error(self) -> ConfigError:
        """One error with a line for each mistake, in the order of the files they stand in."""
        found = sorted(self._cells.items(), key=lambda item: _place(item[0][0]))
        return ConfigError("\n".join(_line(*key, list(cells)) for key, cells in found))

    def refuse(self) -> None:
        """Raise that error if there are mistakes."""
        if self:
            raise self.error()


def _place(origin: Origin | None) -> tuple[bool, str, int]:
    return (False, origin.file, origin.line) if origin else (True, "", 0)


def _line(origin: Origin | None, text: str, cells: list[str]) -> str:
    where = f"{origin}: " if origin else ""
    if cells:
        others = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        where += f"run '{cells[0]}'{others}: "
    return where + text
