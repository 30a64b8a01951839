"""Figures of mixtures: what is in their data, what is left out, and that all can be drawn."""

import csv
import re
from dataclasses import replace

import pytest

from latentbridge.audit import figures
from latentbridge.audit.figures import draw
from latentbridge.audit.figures.frontier import pareto
from latentbridge.audit.figures.sheet import where
from latentbridge.audit.figures.specialisation import _letters
from latentbridge.audit.figures.style import _spread
from latentbridge.audit.figures.temperature import against_temperature
from latentbridge.audit.records import read_records
from latentbridge.rundir import RunDir, append_jsonl, read_json, read_jsonl, write_json

TEMPERATURE = "mixture.router.temperature"
ROUTING = {
    "frontier",
    "overlay",
    "training_curve",
    "balance_vs_perplexity",
    "gate_balance",
    "expert_heat_map",
    "expert_load_distribution",
    "class_by_expert",
    "information",
    "token_colours",
}
STUDY = {
    "temperature_ablation_comprehensive",
    "routing_dynamics",
    "entropy_analysis",
    "expert_utilization",
    "expert_utilization_analysis",
}


def rows_of(launch, name):
    with open(launch.path / "figures" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def words_of(launch, name):
    drawn = (launch.path / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    return " ".join(re.sub(r"<[^>]+>", " ", drawn).split())


def sheet(launch, name):
    (figure,) = [figure for figure in figures.FIGURES if figure.name == name]
    return figure.read(read_records(launch.path))


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer dots take less time."""
    monkeypatch.setattr(figures, "DPI", 30)


@pytest.fixture
def only(monkeypatch):
    """Leave out all figures but these."""

    def keep(*names):
        kept = tuple(figure for figure in figures.FIGURES if figure.name in names)
        monkeypatch.setattr(figures, "FIGURES", kept)

    return keep


@pytest.fixture
def routers(launch):
    """Two routers of two seeds; dropless, and padded."""
    for seed in (1, 2):
        launch.mixture("softk", seed)
        launch.mixture("padded", seed, {"mixture.dispatch.kind": "padded"})
    return launch


@pytest.fixture
def study(launch):
    """Two temperatures, both on weights and on the choice, a longer training, and a schedule."""
    for seed in (1, 2):
        for start in (1.0, 5.0):
            launch.mixture(f"temp_{start}", seed, {f"{TEMPERATURE}.start": start})
            sampled = {f"{TEMPERATURE}.start": start, f"{TEMPERATURE}.acts_on": "choice"}
            launch.mixture(f"sampled_{start}", seed, sampled)
        launch.mixture("long", seed, {f"{TEMPERATURE}.start": 2.0, "train.steps": 60})
        schedule = {"schedule": "linear", "start": 5.0, "end": 1.0}
        launch.mixture("linear", seed, {f"{TEMPERATURE}.{key}": value for key, value in schedule.items()})
    return launch


@pytest.mark.parametrize("name", sorted(ROUTING | STUDY | {"schedule_comparison"}))
def test_every_figure_can_be_drawn_of_one_seed_too(launch, only, name):
    pytest.importorskip("matplotlib")
    only(name)
    launch.mixture("cool", 1)
    launch.mixture("hot", 1, {f"{TEMPERATURE}.start": 5.0})
    schedule = {"schedule": "linear", "start": 5.0, "end": 1.0}
    launch.mixture("linear", 1, {f"{TEMPERATURE}.{key}": value for key, value in schedule.items()})

    written = [path.name for path in draw(launch.path)]

    assert written == [f"{name}.{suffix}" for suffix in ("csv", "pdf", "png", "svg")]


def test_a_launch_without_temperatures_gets_no_figure_of_them(routers):
    records = read_records(routers.path)

    assert {figure.name for figure in figures.FIGURES if figure.read(records).rows} == ROUTING


def test_equal_results_give_equal_bytes(study, only):
    pytest.importorskip("matplotlib")
    only("frontier", "token_colours")
    first = {path.name: path.read_bytes() for path in draw(study.path)}

    assert len(first) == 8
    assert {path.name: path.read_bytes() for path in draw(study.path)} == first


def test_rates_are_medians_after_the_start_and_span_the_seeds(routers):
    (row, _) = sheet(routers, "frontier").rows

    # seeds 1 and 2, of 1,001 and 1,002 a second; the first record, 50 a second, pays for the start
    assert (row["tokens_per_s"], row["tokens_per_s_low"], row["tokens_per_s_high"]) == (1001.5, 1001, 1002)
    assert row["test_bits_per_byte"] == pytest.approx(1.5 * 2.0115)
    assert (row["capacity_factor"], row["seeds"]) == (None, 2)


def test_rates_say_that_a_shared_device_is_in_them(routers):
    assert "runs that shared a device measure that too" in sheet(routers, "frontier").caption("demo")


def test_a_cell_with_a_failed_seed_is_named_and_not_drawn(routers, only):
    pytest.importorskip("matplotlib")
    only("frontier", "gate_balance")
    routers.mixture("late", 1, state="FAILED", cause="oom")

    draw(routers.path)

    for name in ("frontier", "gate_balance"):
        assert "late (seed 1 FAILED" in words_of(routers, name), name
        assert not any(row["cell"] == "late" for row in rows_of(routers, name))


def test_a_void_perplexity_is_left_out_rather_than_capped(routers):
    from latentbridge.metric import void

    folder = routers.mixture("wild", 1)
    record = {"test_perplexity": void("means nothing").as_record()}
    append_jsonl(folder.metrics_log, {"step": 30, "label": "final", "metrics": record})

    assert sheet(routers, "balance_vs_perplexity").left_out == {"wild": "seed 1 means nothing"}


def test_experts_of_seeds_are_never_averaged(routers):
    rows = sheet(routers, "gate_balance").rows

    assert {row["seed"] for row in rows} == {1}
    assert [row["times_even"] for row in rows if row["cell"] == "softk" and row["layer"] == 1] == [
        3.0,
        0.5,
        0.5,
        0.0,
    ]


def test_shares_of_a_class_add_up_and_rare_ones_are_kept_in_the_data(routers):
    rows = sheet(routers, "class_by_expert").rows
    space = [row["share"] for row in rows if row["class"] == "space" and row["cell"] == "softk"]

    assert space == [0, 0.5, 0.5, 0] * 2
    assert {row["class"] for row in rows} == {"lower case", "space", "digit"}


@pytest.mark.parametrize("name", ["class_by_expert", "token_colours"])
def test_each_cell_shows_its_own_first_and_last_layer(launch, only, name):
    """Cells of 1, 2 and 3 layers: the last layer of the deepest was looked for in all."""
    pytest.importorskip("matplotlib")
    only(name)
    for layers, cell in ((2, "usual"), (3, "deep"), (1, "flat")):
        path = launch.mixture(cell, 1).path / "specialisation.json"
        told = read_json(path)
        told["layers"] = [told["layers"][0]] * layers
        for passage in told["passages"]:
            passage["experts"] = [passage["experts"][0]] * layers
        write_json(path, told)

    draw(launch.path)

    words = words_of(launch, name)
    assert re.findall(r"(?:usual|deep|flat), layer \d", words) == [
        "usual, layer 0",
        "usual, layer 1",
        "deep, layer 0",
        "deep, layer 2",
        "flat, layer 0",
    ]


def test_a_text_of_rare_classes_alone_has_no_figure_of_them(launch, only):
    pytest.importorskip("matplotlib")
    only("class_by_expert")
    path = launch.mixture("short", 1).path / "specialisation.json"
    write_json(path, read_json(path) | {"tokens": [19, 8, 1]})

    assert draw(launch.path) == []

    launch.mixture("long", 1)
    draw(launch.path)

    assert {row["cell"] for row in rows_of(launch, "class_by_expert")} == {"long"}
    assert "short (no class of 20 tokens" in words_of(launch, "class_by_expert")


def test_a_text_shows_where_windows_do_not_follow_and_no_viewer_swallows_its_spaces(routers):
    letters = _letters(where(sheet(routers, "token_colours").rows, cell="softk", layer=1))

    assert "".join(letter for letter, _ in letters) == "A\u00a0$b\u00a0…\u00a0c¶"
    assert [expert for _, expert in letters] == [1, 1, -1, 0, -1, -1, -1, 1, 1]


def test_temperatures_are_compared_where_nothing_else_differs(study):
    """The seed put its longer training on the axis of the others."""
    found = sheet(study, "temperature_ablation_comprehensive")

    assert {(row["series"], row["temperature"]) for row in found.rows} == {
        ("weights", 1.0),
        ("weights", 5.0),
        ("choice", 1.0),
        ("choice", 5.0),
    }
    assert list(found.left_out) == ["long"]


def test_best_and_worst_come_with_what_pairs_of_seeds_can_tell(study):
    hot = RunDir(study.path / "temp_5.0-s2")
    *_, final = read_jsonl(hot.metrics_log)
    final["metrics"]["val_nll"]["value"] += 0.002
    append_jsonl(hot.metrics_log, final)

    rows = sheet(study, "temperature_ablation_comprehensive").rows
    table = {row["metric"]: row for row in rows if row["series"] == "weights"}

    assert (table["table_best"]["temperature"], table["table_worst"]["temperature"]) == (1.0, 5.0)
    # 0.040 and 0.042: t = 41 at one degree of freedom, where p is 2 / pi * atan(1 / t)
    assert table["table_difference"]["mean"] == pytest.approx(0.041)
    assert table["table_p"]["mean"] == pytest.approx(0.015525, rel=1e-4)


def test_minutes_are_of_training(study):
    rows = sheet(study, "temperature_ablation_comprehensive").rows
    found = {row["step"]: row["minutes"] for row in rows if row["cell"] == "temp_1.0" and row["step"]}

    assert found == {10: 1.0, 20: 2.0, 30: 3.0}


def test_a_schedule_is_shown_beside_constants_of_its_ends(study):
    rows = sheet(study, "schedule_comparison").rows
    at = {row["step"]: row["mean"] for row in where(rows, cell="linear", metric="temperature")}

    assert {row["cell"] for row in rows} == {"linear", "temp_1.0", "temp_5.0"}
    assert at == pytest.approx({10: 5 - 4 * 9 / 29, 20: 5 - 4 * 19 / 29, 30: 1.0})


def test_evenness_is_a_mean_over_layers_not_of_their_mean(study):
    """The seed averaged layers first, which hides a collapse."""
    rows = sheet(study, "expert_utilization_analysis").rows
    gini = {row["value"] for row in rows if row["metric"] == "gini"}

    # 0 of the first layer; 12, 2, 2, 0 of the second: 2 (2·2 + 3·2 + 4·12) / (4·16) - 5/4
    assert list(gini) == pytest.approx([(58 / 32 - 1.25) / 2])


def test_loads_of_another_number_of_experts_are_named_and_in_no_map(study, only):
    pytest.importorskip("matplotlib")
    only("expert_utilization_analysis", "expert_utilization")
    for start in (1.0, 5.0):
        folder = study.mixture(f"few_{start}", 1, {f"{TEMPERATURE}.start": start, "mixture.num_experts": 3})
        record = {"step": 30, "label": "final", "load": {"test": [[4, 4, 8], [10, 2, 4]]}}
        append_jsonl(folder.path / "experts.jsonl", record)

    draw(study.path)

    usual = {"temp_1.0", "temp_5.0", "sampled_1.0", "sampled_5.0"}
    assert {row["cell"] for row in rows_of(study, "expert_utilization_analysis")} == usual
    caption = words_of(study, "expert_utilization_analysis")
    assert "few_1.0, few_5.0 (loads of other layers or experts" in caption
    assert {row["cell"] for row in rows_of(study, "expert_utilization")} == usual | {"few_1.0", "few_5.0"}


def test_series_beyond_the_lines_there_are_are_drawn_too():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    rows = [
        {
            "series": series,
            "temperature": heat,
            "metric": "gini",
            "value": heat / 9,
            "low": None,
            "high": None,
        }
        for series in "abcde"
        for heat in (1.0, 2.0, 5.0)
    ]

    against_temperature(axes, rows, "gini", "value", "#000000", "evenness")

    assert [bars.get_label() for bars in axes.containers] == [f"acts on {series}" for series in "abcde"]


def test_capacity_is_drawn_from_rows_of_runs_with_what_is_missing_named(launch):
    pytest.importorskip("matplotlib")
    for seed in (1, 2):
        folder = launch.run("bench", seed)
        for factor, dropped in ((1.0, 0.08), (1.25, 0.01)):
            row = {"num_experts": 8, "top_k": 2, "capacity_factor": factor, "closed_form": dropped}
            row |= {"drop_rate": dropped + seed / 1000, "tokens_per_s": 9000 * seed}
            append_jsonl(folder.path / "capacity.jsonl", row)
    launch.run("broken", 3, state="FAILED", cause="oom")

    assert len(draw(launch.path)) == 4

    rows = rows_of(launch, "capacity")
    assert [float(row["drop_rate"]) for row in rows] == pytest.approx([0.0815, 0.0115])
    assert [(row["tokens_per_s_low"], row["tokens_per_s_high"]) for row in rows] == [("9000", "18000")] * 2
    assert "broken-s3 (nothing measured, FAILED oom)" in words_of(launch, "capacity")


def test_benches_of_other_settings_are_series_of_their_own(launch):
    """An even and an uneven load were averaged into a dot that nobody measured."""
    pytest.importorskip("matplotlib")
    for preference, dropped in ((0.0, 0.1), (1.5, 0.4)):
        for dtype, rate in (("bf16", 7000), ("fp32", 3000)):
            folder = launch.run(f"bench_{preference}_{dtype}", 1)
            for factor in (1.0, 2.0):
                row = {"num_experts": 8, "top_k": 2, "capacity_factor": factor, "drop_rate": dropped / factor}
                row |= {"closed_form": None, "tokens_per_s": rate, "preference": preference, "dtype": dtype}
                row |= {"num_tokens": 64, "width": 24, "device": "cpu"}
                append_jsonl(folder.path / "capacity.jsonl", row)

    draw(launch.path)

    rows = where(rows_of(launch, "capacity"), capacity_factor="1.0")
    assert [(row["preference"], row["dtype"], row["drop_rate"], row["tokens_per_s"]) for row in rows] == [
        ("0.0", "bf16", "0.1", "7000.0"),
        ("0.0", "fp32", "0.1", "3000.0"),
        ("1.5", "bf16", "0.4", "7000.0"),
        ("1.5", "fp32", "0.4", "3000.0"),
    ]
    words = words_of(launch, "capacity")
    for preference in (0.0, 1.5):
        for dtype in ("bf16", "fp32"):
            assert f"8, preference {preference}, dtype {dtype}" in words


def test_one_figure_that_fails_does_not_cost_the_others(routers, monkeypatch):
    pytest.importorskip("matplotlib")

    def broken(rows, caption):
        raise ZeroDivisionError

    first, *others = map(figures.known, ("frontier", "overlay"))
    monkeypatch.setattr(figures, "FIGURES", (replace(first, plot=broken), *others))

    with pytest.raises(ExceptionGroup, match="1 figures could not be drawn"):
        draw(routers.path)

    assert not (routers.path / "figures" / f"{first.name}.png").exists()


def test_a_damaged_log_costs_its_own_figure_alone(routers, caplog):
    folder = routers.path / "softk-s1"
    (folder / "experts.jsonl").write_text("{\n{}\n")

    assert {row["cell"] for row in sheet(routers, "gate_balance").rows} == {"padded"}
    assert "experts.jsonl" in caplog.text


def test_what_none_beats_in_both_is_the_front():
    points = [(3, 5.0), (1, 4.0), (2, 4.5), (2.5, 5.5), (1, 3.9)]

    assert pareto(points) == [(1, 3.9), (2, 4.5), (3, 5.0)]


def test_names_of_curves_keep_apart_about_where_they_end():
    assert _spread([0.1, 0.1, 0.1, 0.8], 0.1) == pytest.approx([0.0, 0.1, 0.2, 0.8])
    assert _spread([0.1, 0.5], 0.1) == [0.1, 0.5]
