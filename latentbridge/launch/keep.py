"""Which files of a launch go into its archive, and which of them compressed: the rules, and what they select.

Left out are cache/, locks, drafts, what every clone has, and the checkpoints that `Keep` does not ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field

from latentbridge.config import Config
from latentbridge.errors import RunError
from latentbridge.launch.archive import RECORD, SUMS
from latentbridge.launch.deposit import walk

LOCKS = ("lock", "pool.lock", "finish.lock", "worker.lock", "rank.lock")
# best weights above this, over all runs, are left out unless asked for: archives are meant for git
MAX_CHECKPOINT_BYTES = 64 * 2**20


class Keep(Config):
    """What an archive keeps of a launch; patterns are the shell's, of paths below the launch folder."""

    checkpoints: Literal["best", "all", "none"] | None = Field(
        None, description="of each run; null: the best, where they take less than 64 MB over all runs"
    )
    leave_out: list[str] = Field([], description="files that stay out, and are named in archive.json")
    compress: list[str] = Field([], description="files that are kept as FILE.gz, but for .json and .yaml")


def select(launch_folder: Path, keep: Keep) -> tuple[dict[str, Path], list[str]]:
    """What goes into the archive, by its name there, and what stays out, in words."""
    left_out: list[str] = []
    kinds = ("best", "last") if keep.checkpoints == "all" else ("best",)
    files = dict(walk(launch_folder, left_out, lambda name: _belongs(name, kinds)))
    unwanted = matching(files, keep.leave_out)
    weights = [name for name in files if is_checkpoint(name)]
    num_bytes = sum(files[name].stat().st_size for name in weights)
    if keep.checkpoints == "none" or (keep.checkpoints is None and num_bytes >= MAX_CHECKPOINT_BYTES):
        unwanted += weights
    for name in dict.fromkeys(unwanted):
        left_out.append(name)
        del files[name]
    return files, left_out


def to_compress(files: Iterable[str], keep: Keep) -> list[str]:
    """Which of an archive's files are kept compressed; plans and settings stay what every reader opens."""
    return [name for name in matching(files, keep.compress) if not name.endswith((".json", ".yaml"))]


def idle_patterns(keep: Keep, launch_folder: Path) -> list[str]:
    """The patterns that no file matches: a typo keeps what was to go."""
    names = select(launch_folder, keep.model_copy(update={"leave_out": []}))[0]
    return [pattern for pattern in (*keep.leave_out, *keep.compress) if not matching(names, [pattern])]


def refuse_idle(keep: Keep, launch_folder: Path) -> None:
    """RunError for a pattern that no file matches, where there is somebody to type another."""
    if idle := idle_patterns(keep, launch_folder):
        raise RunError(
            f"{launch_folder}: no file matches '{idle[0]}'; nothing was archived. "
            "Patterns are of paths below the launch, such as '*-s1235/eval_samples*'"
        )


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that any of the patterns matches."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def is_checkpoint(name: str) -> bool:
    """Whether a file of a launch, or of its archive, belongs to a checkpoint of a run."""
    return name.split("/")[1:2] == ["checkpoints"]


def _belongs(name: str, kinds: tuple[str, ...]) -> bool:
    """Whether a launch folder's file or folder is a result; caches, locks and drafts are not."""
    parts = name.split("/")
    if parts[0] == "code":
        return "assets" not in parts  # data and weights of the package itself; every clone has them
    if parts[1:2] == ["checkpoints"] and parts[2:]:
        return parts[2] in kinds
    if parts[:2] == ["ledger", "notices"]:
        return False  # written when the archive is there
    if parts[1:2] == ["trackers"]:
        return False  # the logs again, in other words
    return name not in ("cache", SUMS, RECORD) and not parts[-1].startswith(".") and parts[-1] not in LOCKS
