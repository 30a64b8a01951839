"""Figures of more cells than can be told apart: which have a colour and a name, and what the caption says."""

import pytest

from latentbridge.audit.figures import balance, known, specialisation
from latentbridge.audit.figures.sheet import Sheet, crowd
from latentbridge.audit.figures.spotlight import MOST, ends_of, spotlight
from latentbridge.audit.figures.style import FAINT, draw_band, evenly, name_rows

NAMES = [f"c{number}" for number in range(11)]
# c6 ends highest, then c9, c1, c4 and c7; c3 lowest
ENDS = {name: (7 * number + 1) % 11 for number, name in enumerate(NAMES)}


def test_few_lines_all_have_a_colour_and_the_caption_says_nothing():
    names = NAMES[:MOST]
    light = spotlight(names, ENDS, "context_recovered", "recovered")

    assert (light.named, list(light.look), light.caption("Bars.")) == (names, names, "Bars.")
    assert FAINT not in light.look.values()


@pytest.mark.parametrize(
    ("metric", "named", "words"),
    [
        (
            "context_recovered",
            ["c3", "c6", "c9", "c1", "c4", "c0"],
            "the 5 highest by x at the end; black: the lowest",
        ),
        (
            "losses.lm",
            ["c0", "c5", "c2", "c10", "c7", "c9"],
            "the 5 lowest by x at the end; black: the highest",
        ),
    ],
)
def test_of_many_the_foremost_by_their_ends_and_the_hindmost_are_named(metric, named, words):
    ends = {
        "c3": 10,
        "c6": 9,
        "c9": 11,
        "c1": 8,
        "c4": 7,
        "c0": 0,
        "c5": 1,
        "c2": 2,
        "c10": 3,
        "c7": 4,
        "c8": 5,
    }
    ends = ends | ({"c9": 8.5} if metric == "context_recovered" else {})
    light = spotlight(NAMES, ends, metric, "x")

    assert light.named == named
    assert light.words == f"In colour: of 11 cells {words}; grey: 5 others, in the CSV."
    assert [light.look[name] for name in light.look if name not in named] == [FAINT] * 5
    assert light.look[named[-1]] == {"color": "#000000", "linestyle": "--"}
    # what is drawn last lies above
    assert list(light.look)[-1] == named[-1] and next(iter(light.look)) not in named


def test_a_line_without_the_metric_is_neither_foremost_nor_hindmost_and_a_kept_one_is_named():
    ends = {name: end for name, end in ENDS.items() if name != "c7"}
    middle = sorted(ends, key=ends.__getitem__)[6]
    light = spotlight(NAMES, ends, "losses.lm", "x", keep=(middle, "none"), noun="sets")

    assert light.named[0] == middle and "c7" not in light.named
    assert f"of 11 sets the 5 lowest by x at the end, and {middle}; black" in light.words
    assert "grey: 4 others" in light.words


def test_a_lines_end_is_its_last_mean_and_over_panels_the_mean_of_theirs():
    rows = [
        {"metric": metric, "cell": cell, "fixes": "all", "mean": mean}
        for metric, cell, mean in (("a", "one", 9.0), ("a", "one", 2.0), ("b", "one", 5.0), ("a", "two", 4.0))
    ]

    assert ends_of(rows, "a") == {"one": 2.0, "two": 4.0}
    assert ends_of(rows, "a", "fixes") == {"all": 3.0}


def test_of_many_values_the_ends_and_some_between_are_named():
    assert evenly([1, 2, 3], 3) == [1, 2, 3]
    assert evenly(range(11), 3) == [0, 5, 10]


def test_a_faint_line_has_no_band():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    rows = [{"step": step, "mean": 1.0, "low": 0.5, "high": 2.0} for step in range(9)]
    draw_band(axes, rows, **FAINT)

    assert len(axes.collections) == 0
    assert [line.get_linewidth() for line in axes.lines] == [FAINT["linewidth"]]


def test_names_of_rows_stand_from_the_top_in_their_order():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    name_rows(axes, ["a", "b", "c"])

    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_ylim() == (2.5, -0.5)


def test_bits_of_more_cells_than_a_panel_has_rows_for_are_named_and_in_the_csv():
    """Twenty names lay upon one another below the axis."""
    pytest.importorskip("matplotlib")
    names = [f"c{number}" for number in range(specialisation.MOST_ROWS + 2)]
    rows = [
        {"cell": cell, "layer": 0, "about": about, "share": 0.25, "shuffled_share": 0.125}
        for cell in names
        for about in ("class", "token")
    ]
    sheet = crowd(Sheet("", rows), specialisation.MOST_ROWS)
    (plotted, _) = known("information").plot(rows, "demo.").axes

    assert list(sheet.left_out) == names[-2:]
    assert [text.get_text() for text in plotted.get_yticklabels()] == names[:-2]


def curve(cell, metric, end):
    return [
        {"cell": cell, "metric": metric, "step": step, "mean": end, "low": end, "high": end}
        for step in (10, 20)
    ]


def test_a_curve_of_many_bridges_names_the_foremost_in_the_last_panel_that_has_them_all():
    """Twenty names and lines stood in a column, in seven colours."""
    pytest.importorskip("matplotlib")
    recovered = [row for name in NAMES for row in curve(name, "context_recovered", ENDS[name] / 11)]
    for lacking, labelled in (("c0", 1), ("c6", 0)):
        accuracy = [row for name in NAMES if name != lacking for row in curve(name, "bridged_accuracy", 0.5)]
        figure = known("bridge_curve").plot([*recovered, *accuracy], "demo.")

        names = [{text.get_text() for text in axes.texts} for axes in figure.axes]
        assert names[labelled] == {"c6", "c9", "c1", "c4", "c7", "c3"} and names[1 - labelled] == set()
        words = figure.texts[-1].get_text().replace("\n", " ")
        assert "of 11 cells the 5 highest by context recovered at the end; black: the lowest" in words


def test_points_of_many_cells_keep_their_places_and_lose_their_names():
    """At the width of a column names lay upon one another, and some outside of the axes."""
    pytest.importorskip("matplotlib")
    blank = {f"{name}{bound}": None for name in balance.AGAINST for bound in ("_low", "_high")}
    blank |= {f"{balance.PERPLEXITY}{bound}": None for bound in ("_low", "_high")}
    rows = [
        blank | dict.fromkeys(balance.AGAINST, end / 7) | {"cell": cell, balance.PERPLEXITY: 4.0 + end}
        for cell, end in ENDS.items()
    ]
    (axes, _) = balance.FIGURES[0].plot(rows, "demo.").axes

    ranked = sorted(ENDS, key=ENDS.__getitem__)
    assert sorted(text.get_text() for text in axes.texts) == sorted([*ranked[:5], ranked[-1]])
    assert len(axes.containers) == len(NAMES)
