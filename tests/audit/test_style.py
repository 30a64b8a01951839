"""How figures look: what hides nothing, and captions that tell how many."""

from itertools import pairwise

import pytest

from latentbridge.audit.figures import known
from latentbridge.audit.figures.sheet import Sheet
from latentbridge.audit.figures.style import (
    COLOURS,
    _within,
    dots,
    draw_band,
    label_ends,
    looks,
    new_figure,
)
from latentbridge.audit.records import read_records


def row(cell, ids, **more):
    return {"cell": cell, "run_ids": ids, **more}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", "1 2 3"), row("b", "4 5 6")], "3 seeds a cell."),
        ([row("a", "1 2 3"), row("b", "4")], "1 to 3 seeds a cell."),
        ([row("a", "1")], "1 seed a cell."),
        # one diagram of several cells, and rows of single runs: nothing to be counted
        ([row("a", "1 2 3 4", cells="a b")], ""),
        ([{"cell": "a", "run_id": "1"}], ""),
    ],
)
def test_a_caption_says_how_many_seeds_a_cell_has(rows, said):
    """Intervals over seeds stood there without their n."""
    assert Sheet("Bars. ", rows).caption("demo") == " ".join(filter(None, ("demo. Bars.", said)))


def test_cells_that_are_left_out_for_one_reason_share_it():
    """Fourteen cells had the same words behind each of them."""
    left_out = {"a": "no room", "b": "FAILED", "c": "no room"}

    assert Sheet("Bars.", [], left_out).caption("demo").endswith("Left out: a, c (no room); b (FAILED).")


def test_a_number_and_its_percent_sign_stay_in_one_line():
    pytest.importorskip("matplotlib")
    for width in range(4, 9):
        text = new_figure("40 to 60 % of it", width / 23, 1.0).texts[-1].get_text()
        assert "\n%" not in text


def test_the_eighth_name_is_not_drawn_as_the_first():
    """Two routers of eight were blue dots."""
    names = [f"cell {number}" for number in range(len(COLOURS) + 1)]
    for look in (dots(names), looks(names), looks(names, may_coincide=True)):
        assert len({tuple(own.values()) for own in look.values()}) == len(names)
    assert {own["linestyle"] for own in looks(names[:3]).values()} == {"-"}
    assert len({own["linestyle"] for own in looks(names[:3], may_coincide=True).values()}) == 3


def test_few_points_are_marked_and_many_are_not():
    """A straight line between two evaluations looked like a curve that was measured all along."""
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    for count in (2, 30):
        rows = [{"step": n, "mean": 1.0, "low": 0.5, "high": 2.0} for n in range(count)]
        draw_band(axes, rows, color="#000000")

    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


def test_names_at_the_ends_of_curves_stay_beside_the_axes_and_show_their_lines():
    pytest.importorskip("matplotlib")
    axes = new_figure("", 5.0, 2.0).subplots()
    axes.set_ylim(0, 1)
    look = looks([f"c{number}" for number in range(9)])
    label_ends(axes, [(0.0, name, own) for name, own in look.items()])

    heights = sorted(text.xy[1] for text in axes.texts)
    assert heights[0] > 0 and heights[-1] < 1 and min(b - a for a, b in pairwise(heights)) > 0.02
    drawn = [(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_linewidth() == 1]
    assert set(drawn) == {tuple(own.values()) for own in look.values()}


def test_heights_are_moved_into_the_axes_where_they_have_room():
    assert _within([-0.4, -0.2, 0.5], 0.2) == pytest.approx([0.1, 0.3, 0.5])
    assert _within([0.2, 0.9, 1.3], 0.2) == pytest.approx([0.2, 0.7, 0.9])
    assert _within([-0.4, 0.2, 0.8], 0.6) == [-0.4, 0.2, 0.8]


def test_a_share_above_the_whole_flattens_no_curve_and_is_named(launch, metric):
    """One cell at 16.7 drew the five others as one line at the bottom."""
    config = {"source": {"model": "a"}, "target": {"model": "b"}, "model": {"soft_tokens": 3}}
    launch.run("fair", 1, {"context_recovered": metric(0.75)}, config=config, label="5")
    launch.run("beyond", 1, {"context_recovered": metric(16.5)}, config=config, label="5")
    sheet = known("bridge_curve").read(read_records(launch.path))

    assert {found["cell"] for found in sheet.rows if found["metric"] == "context_recovered"} == {"fair"}
    assert sheet.left_out["context recovered of beyond"] == "above 1, see the notes"
