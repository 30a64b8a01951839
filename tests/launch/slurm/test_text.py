"""Times, host lists and GPU lists as SLURM writes them."""

from __future__ import annotations

import pytest

from latentbridge.launch.slurm.text import node_names, parse_fields, parse_gpus, parse_seconds, parse_table


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-00:00:00", 86400), ("02:00:00", 7200), ("10:30", 630), ("45", 2700), ("2-12", 216000),
     ("1-01:30", 91800), ("00:01:30", 90), ("UNLIMITED", None), ("NONE", None), ("", None), (None, None)],
)  # fmt: skip
def test_times_are_read_in_all_of_slurms_spellings(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "names"),
    [("gpu07", ["gpu07"]), ("gpu[08-10,12],login1", ["gpu08", "gpu09", "gpu10", "gpu12", "login1"]),
     ("r[1-2]n[01-02]-ib", ["r1n01-ib", "r1n02-ib", "r2n01-ib", "r2n02-ib"]), ("", [])],
)  # fmt: skip
def test_host_lists_are_spelled_out(text, names):
    assert node_names(text) == names


@pytest.mark.parametrize(
    ("text", "gpus"),
    [("gpu:h100:4(S:0-1)", {"h100": 4}), ("gpu:a100:4(S:0,2),nvme:1,gpu:v100:2", {"a100": 4, "v100": 2}),
     ("gpu:3", {"": 3}), ("gpu", {"": 1}), ("gpu:3g.20gb:2,shard:8", {"3g.20gb": 2}), ("(null)", {})],
)  # fmt: skip
def test_gpus_are_counted_by_type(text, gpus):
    assert parse_gpus(text) == gpus


def test_a_value_may_hold_blanks_and_the_first_of_two_equal_names_counts():
    fields = parse_fields("NodeName=a OS=Linux 6.1 #1 SMP State=DOWN Extra= Reason=disk died State=IDLE")

    assert fields == {
        "NodeName": "a", "OS": "Linux 6.1 #1 SMP", "State": "DOWN", "Extra": "", "Reason": "disk died",
    }  # fmt: skip


def test_tables_are_read_by_their_column_names():
    assert parse_table(["Name|MaxWall|Flags", "a|1:00|", "", "b||X"]) == [
        {"Name": "a", "MaxWall": "1:00", "Flags": ""}, {"Name": "b", "MaxWall": "", "Flags": "X"},
    ]  # fmt: skip
    assert parse_table([]) == []
