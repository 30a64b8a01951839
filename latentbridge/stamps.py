"""Names of launches and archives end in when they were made: NAME_YYYYMMDD_HHMMSS."""

from __future__ import annotations

import re
import time

# published launchers put theirs between quotes, which stayed in the names
_STAMP = re.compile(r'(^|_)"?\d{8}_\d{6}"?')
_AT_END = re.compile(rf"({_STAMP.pattern})$")


def stamped(name: str, at: time.struct_time | None = None) -> str:
    """A name with its stamp; at: when, else now by this host's clock and time zone."""
    return f"{name}_{time.strftime('%Y%m%d_%H%M%S', at or time.localtime())}"


def unstamped(name: str) -> str:
    """A name without the stamp that it ends in."""
    return _AT_END.sub("", name)


def is_stamped(name: str) -> bool:
    """Whether a stamp stands anywhere in a name: people add words behind it."""
    return _STAMP.search(name) is not None
