"""Figures of bridges: with and without fixes, what an answer costs, and the grid of layers."""

import copy
from dataclasses import replace

import pytest

from latentbridge.audit import figures
from latentbridge.audit.figures import draw, inference, layer_grid, stability
from latentbridge.audit.figures.curves import FIGURES as CURVES
from latentbridge.audit.records import read_records
from latentbridge.metric import void
from latentbridge.rundir import append_jsonl

FIXED = {
    "source": {"model": "bundled:gpt2_char", "layer": -1},
    "target": {"model": "bundled:llama_bpe", "layer": -1},
    "model": {"soft_tokens": 8, "kind": "gated", "gate_init": 0.0, "rms_match": True},
    "losses": {"info_nce": {"weight": 0.05, "temperature": 0.07}},
    "optim": {"warmup_steps": 50, "clip_norm": 1.0, "gate_lr_multiplier": 3.0, "lr": 1e-3},
}
DRAWN = {
    "bridge_curve": CURVES[-1],
    "stability": stability.FIGURES[0],
    "inference": inference.FIGURES[0],
    "layer_grid": layer_grid.FIGURES[0],
}


def changed(**changes):
    config = copy.deepcopy(FIXED)
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = config
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return config


@pytest.fixture
def trained(launch, metric):
    """A run with curves: losses and gradients at 10, 20 and 30, recovery at 20 and 30."""

    def make(cell, seed, config, height=0.0):
        folder = launch.run(cell, seed, config=config | {"seed": seed})
        for step in (10, 20, 30):
            losses = {"lm": 2 + height + seed / 100 - step / 100}
            append_jsonl(folder.train_log, {"step": step, "losses": losses, "grad_norm": 1 + height})
            if step > 10:
                metrics = {"context_recovered": metric(0.5 + step / 100 - height / 10).as_record()}
                append_jsonl(folder.metrics_log, {"step": step, "label": str(step), "metrics": metrics})
        return folder

    return make


def costs(metric, scale=1.0):
    found = {"kv_saved_mib": metric(0.75 * scale)}
    for number, method in enumerate(inference.METHODS, start=1):
        for quantity in inference.PANELS:
            found[f"{method}_{quantity}"] = metric(number * scale / 8)
    found["source_alone_tpot_s"] = void("no reply has a second token")
    return found


def fill_grid(launch, metric):
    for source in (0, -1, 16):
        for target in (0, 16):
            for seed in (1, 2):
                value = metric(0.5 + target / 100 + seed / 100)
                config = changed(source__layer=source, teacher={"layer": target}, seed=seed)
                launch.run(f"s{source}_t{target}", seed, {"context_recovered": value}, config=config)
    passed = changed(source__layer=16, model__kind="passthrough", teacher=None)
    launch.run("through", 1, {"context_recovered": metric(0.125)}, config=passed)


def sheet(launch, name):
    return DRAWN[name].read(read_records(launch.path))


def test_cells_that_differ_in_fixes_alone_share_a_panel_and_say_what_they_lack(launch, trained):
    bare = {"losses__info_nce__weight": 0.0, "optim__clip_norm": None}
    for seed in (1, 2):
        trained("stable", seed, FIXED)
        trained("bare", seed, changed(**bare), height=1.0)
        trained("one", seed, changed(optim__clip_norm=None))
        trained("other_rate", seed, changed(optim__lr=2e-3))
    found = sheet(launch, "stability")

    assert {row["cell"]: (row["like"], row["fixes"]) for row in found.rows} == {
        "stable": ("stable", "with all fixes"),
        "bare": ("stable", "without InfoNCE, clipping"),
        "one": ("stable", "without clipping"),
    }
    (last,) = [r for r in found.rows if (r["cell"], r["metric"], r["step"]) == ("bare", "losses.lm", 30)]
    assert [last[key] for key in ("mean", "low", "high")] == pytest.approx([2.715, 2.71, 2.72])
    assert last["run_ids"] == "000000000001 000000000005"
    recovered = [r["step"] for r in found.rows if (r["cell"], r["metric"]) == ("one", "context_recovered")]
    assert recovered == [20, 30]


def test_a_run_that_broke_without_a_fix_is_named_with_its_cause(launch, trained):
    trained("stable", 1, FIXED)
    trained("bare", 1, changed(losses__info_nce__weight=0.0))
    launch.run("open", 1, state="FAILED", cause="nan", config=changed(model__gate_init=1.0))

    assert sheet(launch, "stability").left_out == {"open": "seed 1 FAILED nan"}


def test_of_many_groups_the_first_the_last_and_some_between_are_drawn(launch, trained):
    for tokens in range(1, 8):
        trained(f"with_{tokens}", 1, changed(model__soft_tokens=tokens))
        trained(f"less_{tokens}", 1, changed(model__soft_tokens=tokens, optim__warmup_steps=0))
    found = sheet(launch, "stability")

    drawn = {row["cell"] for row in found.rows} - set(found.left_out)
    assert drawn == {f"{kind}_{tokens}" for kind in ("with", "less") for tokens in (1, 3, 5, 7)}


def test_without_a_fix_that_varies_nothing_is_compared(launch, trained):
    trained("a", 1, FIXED)
    trained("b", 1, changed(optim__lr=2e-3))

    assert sheet(launch, "stability").rows == []


def test_bridges_have_their_curves_by_cell(launch, trained):
    for seed in (1, 2):
        trained("stable", seed, FIXED)
    rows = sheet(launch, "bridge_curve").rows

    assert [(row["metric"], row["step"]) for row in rows] == [
        *(("losses.lm", step) for step in (10, 20, 30)),
        *(("context_recovered", step) for step in (20, 30)),
    ]


def test_what_an_answer_costs_is_told_by_method_and_void_is_no_zero(launch, metric):
    for seed in (1, 2):
        launch.run("eight", seed, costs(metric), config=FIXED)
    launch.run("untimed", 1, {"context_recovered": metric(0.5)}, config=FIXED)
    found = sheet(launch, "inference")

    told = {(row["method"], row["quantity"]): row for row in found.rows}
    assert len(told) == len(found.rows) == 5 * 3 - 1 + 1
    assert ("source_alone", "tpot_s") not in told
    assert told["bridged", "kv_mib"]["value"] == pytest.approx(3 / 8)
    assert told["bridged", "kv_saved_mib"]["value"] == pytest.approx(0.75)
    assert {(row["cell"], row["n"], row["run_ids"]) for row in found.rows} == {
        ("eight", 2, "000000000000 000000000001")
    }
    assert "over seeds" in found.about


def test_bars_of_a_busy_machine_do_not_press_the_points_together(launch, metric):
    """Drawn from a real run of two seeds, times went from -10 s to 12 s about points at 0.1 s."""
    pytest.importorskip("matplotlib")
    for seed, slower in ((1, 1.0), (2, 4.0)):
        found = costs(metric)
        first = found["bridged_ttft_s"]
        found["bridged_ttft_s"] = replace(first, value=first.value * slower)
        launch.run("eight", seed, found, config=FIXED)
    read = sheet(launch, "inference")
    slowest = max(row["value"] for row in read.rows if row["quantity"] == "ttft_s")
    canvas = inference.FIGURES[0].plot(read.rows, "")

    low, high = canvas.axes[0].get_xlim()
    assert low == 0 and 1e3 * slowest < high <= 2.2e3 * slowest
    assert "cut off" in read.about


def test_numbers_on_a_map_of_equal_values_can_be_read(launch, metric):
    """Black letters stood on the darkest blue."""
    pytest.importorskip("matplotlib")
    for source in (0, 16):
        for target in (0, 16):
            config = changed(source__layer=source, teacher={"layer": target})
            launch.run(f"s{source}_t{target}", 1, {"context_recovered": metric(0.5)}, config=config)
    canvas = layer_grid.FIGURES[0].plot(sheet(launch, "layer_grid").rows, "")

    assert {text.get_color() for text in canvas.axes[0].texts} == {"white"}


def test_the_grid_has_each_cell_at_its_two_layers_and_passthrough_beside_them(launch, metric):
    fill_grid(launch, metric)
    other = changed(teacher={"layer": 3}, optim__lr=2e-3)
    launch.run("elsewhere", 1, {"context_recovered": metric(0.9)}, config=other)
    rows = sheet(launch, "layer_grid").rows

    places = {(row["source_layer"], row["target_layer"]): row for row in rows}
    assert len(places) == len(rows) == 3 * 2 + 1
    assert places[-1, 16]["value"] == pytest.approx(0.5 + 0.16 + 0.015)
    # two seeds 0.01 apart: t(1, 0.975) = 12.7062 times 0.005
    assert places[-1, 16]["value_high"] == pytest.approx(0.675 + 0.0635, abs=1e-4)
    assert places[16, "passthrough"]["cell"] == "through"


def test_a_row_of_layers_is_no_grid(launch, metric):
    for layer in (0, 16):
        config = changed(source__layer=layer, teacher={"layer": 0})
        launch.run(f"s{layer}", 1, {"context_recovered": metric(0.5)}, config=config)

    assert sheet(launch, "layer_grid").rows == []


def test_heat_maps_count_layers_from_the_start_then_from_the_end_then_none(launch, metric):
    pytest.importorskip("matplotlib")
    fill_grid(launch, metric)
    canvas = layer_grid.FIGURES[0].plot(sheet(launch, "layer_grid").rows, "")

    axes = canvas.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "16", "-1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "16", "passthrough"]
    assert "0.675\n[0.61, 0.74]" in {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_they_are_drawn_with_equal_bytes_twice(launch, trained, metric, monkeypatch, name):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "DPI", 30)
    monkeypatch.setattr(figures, "FIGURES", (DRAWN[name],))
    trained("stable", 1, FIXED)
    trained("bare", 1, changed(losses__info_nce__weight=0.0))
    launch.run("timed", 1, costs(metric), config=changed(model__soft_tokens=3))
    fill_grid(launch, metric)
    first = {path.name: path.read_bytes() for path in draw(launch.path)}

    assert set(first) == {f"{name}.{suffix}" for suffix in ("csv", "pdf", "png", "svg")}
    assert {path.name: path.read_bytes() for path in draw(launch.path)} == first
