"""Stamps of launches: made in one place, and read as they were made."""

import re
import time
from pathlib import Path

import pytest

from latentbridge import stamps
from latentbridge.stamps import is_stamped, stamped, unstamped


def test_a_stamp_is_of_the_time_that_was_asked_for():
    at = time.struct_time((2025, 11, 9, 7, 5, 3, 6, 313, 0))
    assert stamped("push_128", at) == "push_128_20251109_070503"
    assert re.fullmatch(r"a_\d{8}_\d{6}", stamped("a"))


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("demo_20251109_070503", "demo"),
        # published launchers kept the quotes
        ('phase1_"20251116_201212"', "phase1"),
        ("20251116_201212", ""),
        ("demo_20251109_070503_copy", "demo_20251109_070503_copy"),
        ("demo_2025110_070503", "demo_2025110_070503"),
    ],
)
def test_only_the_stamp_that_ends_a_name_is_taken_off(name, bare):
    assert unstamped(name) == bare


def test_a_stamp_in_the_middle_is_one_too():
    assert is_stamped("demo_20251109_070503_copy") and not is_stamped("demo_9_7")


def test_no_other_file_knows_what_a_stamp_looks_like():
    """Four had patterns of their own, of which one took a quoted stamp for a part of the name."""
    package = Path(stamps.__file__).parent
    pattern = re.compile(r"\\d\{8\}_|%Y%m%d_")
    assert [path.name for path in package.rglob("*.py") if pattern.search(path.read_text())] == ["stamps.py"]
