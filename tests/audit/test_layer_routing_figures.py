"""Figures of layer routing: which learning rate is shown, what is in their data, what is left out."""

import pytest

from latentbridge.audit import figures
from latentbridge.audit.figures import draw
from latentbridge.audit.figures.sheet import where
from latentbridge.audit.records import read_records
from latentbridge.rundir import append_jsonl, write_json

ROUTED = ["gdn", "routed", "routed", "softmax"]
NAMES = {
    "layer_routing_curves",
    "layer_routing_shares",
    "layer_routing_split",
    "layer_routing_entropy",
    "class_by_mixer",
    "layer_mixers",
    "layer_ranking",
    "learning_rates",
}
# by arm and rate: nats of the validation and of the test text, which would choose otherwise
ARMS = {
    "hybrid_lr=0.001": ("softmax_17", 2.0, 3.0),
    "hybrid_lr=0.002": ("softmax_17", 2.5, 1.0),
    "dynamic_lr=0.001": (ROUTED, 2.4, 1.5),
    "dynamic_lr=0.002": (ROUTED, 2.2, 2.5),
}


@pytest.fixture
def run_of(launch, metric):
    """Writes one run of an arm; the seed is the noise."""

    def make(cell, seed, state="DONE", lacks=None):
        mixers, val, test = ARMS[cell]
        noise, is_routed = seed / 1000, mixers == ROUTED
        config = {"mixers": mixers, "optim": {"lr": float(cell[-5:])}, "text": {"context": 11}, "seed": seed}
        found = {"val_nll": val + noise, "val_accuracy": 0.25, "test_nll": test + noise}
        found |= {"total_parameters": 7000.0 + len(mixers)}
        if is_routed:
            for text in ("val", "test"):
                shares = {f"{text}_layer_1_gdn_share": 0.5 + noise, f"{text}_layer_2_gdn_share": 0.95 + noise}
                found |= {**shares, f"{text}_route_entropy": 0.25, f"{text}_split_entropy": 0.5}
        found.pop(lacks, None)
        folder = launch.run(cell, seed, {k: metric(v) for k, v in found.items()}, config=config, state=state)
        final = folder.metrics_log.read_text()
        folder.metrics_log.unlink()
        records = {k: metric(v).as_record() for k, v in found.items() if k.startswith("val_")}
        for step in (10, 20):
            append_jsonl(folder.metrics_log, {"step": step, "label": str(step), "metrics": records})
            losses = {"lm": val + 1 / step}
            if is_routed:
                losses |= {"balance": 1.25, "gdn_share": 0.75, "temperature": 1 / step}
            record = {"step": step, "losses": losses, "tokens_per_s": 100.0, "elapsed_s": step}
            append_jsonl(folder.train_log, record)
        folder.metrics_log.write_text(folder.metrics_log.read_text() + final)
        if is_routed:
            layers = [{"load": [[30, 10], [5, 5]]}, {"load": [[0, 40], [10, 0]]}]
            told = {"classes": ["space", "digit"], "tokens": [40, 10], "layers": layers}
            write_json(folder.path / "specialisation.json", told)

    return make


@pytest.fixture
def filled(launch, run_of):
    for cell in ARMS:
        for seed in (1, 2):
            run_of(cell, seed)
    return launch


def sheet(launch, name):
    (figure,) = [figure for figure in figures.FIGURES if figure.name == name]
    return figure.read(read_records(launch.path))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_figure_can_be_drawn_of_one_seed_too(launch, run_of, monkeypatch, name):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "DPI", 30)
    kept = tuple(figure for figure in figures.FIGURES if figure.name == name)
    monkeypatch.setattr(figures, "FIGURES", kept)
    for cell in ARMS:
        run_of(cell, 1)

    written = [path.name for path in draw(launch.path)]

    assert written == [f"{name}.{suffix}" for suffix in ("csv", "pdf", "png", "svg")]


def test_equal_results_give_equal_bytes(filled, monkeypatch):
    """So that preserving again changes nothing; matplotlib names some clip paths by their addresses."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "DPI", 30)
    kept = tuple(figure for figure in figures.FIGURES if figure.name in NAMES)
    monkeypatch.setattr(figures, "FIGURES", kept)
    first = {path.name: path.read_bytes() for path in draw(filled.path)}

    assert len(first) == 4 * len(NAMES)
    assert {path.name: path.read_bytes() for path in draw(filled.path)} == first


def test_an_arm_is_shown_at_the_rate_that_validation_chooses(filled):
    """R: at unequal rates the rate decides who wins."""
    ranking = sheet(filled, "layer_ranking").rows

    # in the order of the launch, so that an arm has one colour in all figures
    told = [(row["rank"], row["cell"], row["learning_rate"]) for row in ranking]
    assert told == [(2, "hybrid", 0.001), (1, "dynamic", 0.002)]
    assert [row["test_nll"] for row in ranking] == pytest.approx([3.0015, 2.5015])
    # of four layers one is softmax and two are routed, 0.4985 and 0.0485 of whose tokens softmax reads
    assert [row["softmax_share"] for row in ranking] == pytest.approx([2 / 12, (1 + 0.4985 + 0.0485) / 4])
    assert {row["cell"] for row in sheet(filled, "layer_routing_curves").rows} == {
        "dynamic_lr=0.002",
        "hybrid_lr=0.001",
    }


def test_the_grid_shows_every_rate_and_stars_the_chosen(filled):
    rows = where(sheet(filled, "learning_rates").rows, text="test")

    assert [(row["cell"], row["learning_rate"]) for row in rows if row["is_chosen"]] == [
        ("hybrid", 0.001),
        ("dynamic", 0.002),
    ]
    assert len(rows) == 4


def test_an_arm_of_which_a_seed_is_missing_is_named_and_not_shown(filled, run_of):
    run_of("dynamic_lr=0.001", 9, state="FAILED")

    found = sheet(filled, "layer_ranking")

    assert [row["cell"] for row in found.rows] == ["hybrid"]
    assert found.left_out["dynamic_lr=0.001"].startswith("seed 9 FAILED")
    assert found.left_out["dynamic_lr=0.002"] == "nobody can say which rate is best"


def test_an_arm_whose_routes_were_not_measured_has_no_place_in_the_ranking(filled, run_of):
    """It counted as half softmax."""
    run_of("dynamic_lr=0.002", 3, lacks="test_layer_2_gdn_share")

    found = sheet(filled, "layer_ranking")

    assert [row["cell"] for row in found.rows] == ["hybrid"]
    assert found.left_out == {"dynamic_lr=0.002": "test_layer_2_gdn_share: seed 3 not measured"}


def test_shares_are_of_validation_and_those_of_training_are_told_apart(filled):
    """Z: shares of training samples were labelled as validation."""
    rows = sheet(filled, "layer_routing_shares").rows

    assert [row["mean"] for row in where(rows, metric="validation", layer=2)] == pytest.approx([0.9515] * 2)
    assert {row["mean"] for row in where(rows, metric="training")} == {0.75}


def test_classes_tell_who_softmax_reads_and_rare_ones_nothing(filled):
    rows = sheet(filled, "class_by_mixer").rows

    assert [(row["layer"], row["class"], row["softmax_share"]) for row in rows] == [
        (1, "space", 0.25),
        (2, "space", 1.0),
    ]
    assert rows[0]["tokens"] == 80


def test_other_launches_have_none_of_these(launch):
    launch.mixture("softk", 1)
    records = read_records(launch.path)

    assert not [
        figure.name for figure in figures.FIGURES if figure.name in NAMES and figure.read(records).rows
    ]
