"""`latentbridge figures`: which are drawn, where to, how wide, and what an archive keeps."""

import struct

import pytest

from latentbridge.audit import figures
from latentbridge.audit.figures.style import NARROW_IN, PAGE_IN, at_most, new_figure
from latentbridge.launch.archive import SUMS
from latentbridge.launch.cli import main


@pytest.fixture
def mixtures(launch, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "DPI", 30)
    for cell, strategy in (("a", "softk"), ("b", "topk")):
        for seed in (17, 18):
            launch.mixture(cell, seed, {"mixture.router.strategy": strategy})
    return launch.path


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["figures", *map(str, words)])
    return ended.value.code


def width_in(png):
    """Of an image of 30 dots an inch."""
    return struct.unpack(">I", png.read_bytes()[16:20])[0] / 30


def test_one_figure_goes_where_it_is_told_in_the_formats_that_are_asked_for(
    mixtures, tmp_path, capsys, caplog
):
    assert run(mixtures, "--only", "overlay", "--out", tmp_path / "here", "--format", "pdf", "svg") == 0

    found = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert found == ["overlay.csv", "overlay.pdf", "overlay.svg"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "here" / name) for name in found]
    assert (tmp_path / "here" / "overlay.pdf").read_bytes().startswith(b"%PDF")
    assert run(mixtures, "--only", "overlay", "--out", tmp_path / "pdf", "--format", "pdf") == 0
    assert caplog.records == [], "a PDF alone is no want of matplotlib"
    assert not (mixtures / "figures").exists()


@pytest.mark.parametrize("command", ["figures", "report"])
def test_a_folder_that_is_no_launch_is_bad_input(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "nowhere")])

    assert ended.value.code == 2
    assert "nowhere: neither a launch folder nor a run in one" in capsys.readouterr().err


def test_a_launch_has_its_figures_inside_and_an_archive_stays_as_it_is(mixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(mixtures, "--only", "frontier", "--format", "svg") == 0
    assert (mixtures / "figures" / "frontier.svg").exists()
    (mixtures / "figures" / "frontier.svg").unlink()
    (mixtures / SUMS).write_text("")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    assert run(mixtures, "--only", "frontier", "--format", "svg") == 0
    assert (elsewhere / mixtures.name / "frontier.svg").exists()
    assert not (mixtures / "figures" / "frontier.svg").exists()


def test_a_name_that_no_figure_has_is_refused_with_those_that_are_known(mixtures, capsys):
    assert run(mixtures, "--only", "overlays") == 2
    assert "no figure 'overlays'; did you mean 'overlay'? Known: soft_tokens, " in capsys.readouterr().err
    assert not (mixtures / "figures").exists()


def test_a_figure_that_was_asked_for_and_has_no_data_is_named(mixtures, capsys):
    assert run(mixtures, "--only", "overlay", "--only", "capacity", "--format", "png") == 1
    assert capsys.readouterr().err == (
        f"{mixtures.name} has no results for capacity: it needs runs of the job capacity\n"
    )


def test_at_column_width_panels_are_stacked_and_the_data_is_the_same(mixtures, tmp_path):
    for width in ("text", "column"):
        words = ("--only", "overlay", "--format", "png", "--width", width, "--out", tmp_path / width)
        assert run(mixtures, *words) == 0

    drawn = {width: tmp_path / width / "overlay.png" for width in ("text", "column")}
    assert [width_in(png) for png in drawn.values()] == pytest.approx([PAGE_IN, NARROW_IN], abs=0.04)
    data = [png.with_suffix(".csv").read_bytes() for png in drawn.values()]
    assert data[0] == data[1]


@pytest.mark.parametrize(
    ("asked", "lines", "across"),
    [((1, 3), 3, 1), ((2, 4), 4, 2), ((1, 1), 1, 1), ((2, 2), 4, 1)],
)
def test_a_narrow_figure_keeps_the_shape_that_was_asked_for_and_stacks_the_panels(asked, lines, across):
    pytest.importorskip("matplotlib")
    with at_most(NARROW_IN):
        figure = new_figure("", PAGE_IN, 3.0)
        panels = figure.subplots(*asked, squeeze=False, sharey="row")

    assert panels.shape == asked
    places = [axes.get_subplotspec().get_geometry()[:2] for axes in panels.flat]
    assert places == [(lines, across)] * len(places)
    # a row goes on sharing its heights, wherever its panels stand
    panels[0][0].set_ylim(0, 7)
    assert panels[0][-1].get_ylim() == (0, 7)
    assert len(panels) == 1 or panels[1][0].get_ylim() == (0, 1)


def test_figures_whose_panels_tell_something_by_their_place_stay_as_wide_as_a_page():
    pytest.importorskip("matplotlib")
    with at_most(NARROW_IN):
        assert new_figure("", PAGE_IN, 3.0, stacks=False).get_figwidth() == PAGE_IN
        assert new_figure("", PAGE_IN, 3.0).get_figwidth() == NARROW_IN
    assert new_figure("", PAGE_IN, 3.0).get_figwidth() == PAGE_IN


@pytest.mark.parametrize(
    ("name", "needed"),
    [("inference", "eval.inference_examples above 0"), ("layer_grid", "source.layer and teacher.layer")],
)
def test_a_figure_without_results_says_which_it_needs(mixtures, tmp_path, capsys, name, needed):
    """None of the archives that ship has any for these two, and nothing said why."""
    assert run(mixtures, "--only", name, "--out", tmp_path / "here") == 1

    assert needed in capsys.readouterr().err and not (tmp_path / "here").exists()


def test_what_is_missing_is_told_by_cell(launch, metric, tmp_path, capsys):
    costs = {"kv_saved_mib": metric(0.75), "bridged_ttft_s": metric(0.25)}
    launch.run("timed", 3, costs)
    launch.run("timed", 4, {}, state="FAILED")

    assert run(launch.path, "--only", "inference", "--out", tmp_path / "here") == 1

    assert "; timed: " in capsys.readouterr().err


def test_every_figure_says_what_it_needs():
    assert all(len(figure.needs) > 10 for figure in figures.FIGURES)
