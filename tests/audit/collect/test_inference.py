"""The translator's benchmark of inference, as its script would write it."""

import json

import pytest

from latentbridge.audit.collect.inference import CACHE, CUT, QUOTED
from latentbridge.audit.collect.table import collect

FOLDER = "1a_stable_64tok_20251108_091500"


def reply(em, **changes):
    return {
        **{"method": "target_alone", "generated_text": "#### 9", "input_len": 150, "output_len": 50},
        **{"total_seq_len": 200, "kv_cache_mb": 100.0, "latency_sec": 2.0 + em, "peak_mem_mb": 31000.5},
        **{"em": em, "f1": em / 2},
        **changes,
    }


def sample(number, target, latent):
    return {
        "sample_id": number,
        "question": "Q",
        "gold_answer": "9",
        "target_alone": target,
        "latent": latent,
    }


SAMPLES = [
    sample(0, reply(1.0), reply(0.0)),
    sample(1, reply(0.0), reply(0.0)),
    sample(2, reply(1.0), reply(1.0)),
]


def method(em):
    return {
        "num_samples": 3,
        "kv_cache_mb": {"mean": 100.0, "min": 90.5, "max": 120.0},
        "latency_sec": {"mean": 2.5, "min": 2.0, "max": 3.0},
        "accuracy": {"em": em, "f1": em / 2},
    }


AGGREGATE = {
    **{"target_alone": method(0.5), "latent": method(0.25)},
    "kv_cache_savings": {"absolute_mb": 59.0, "relative_pct": 59.0},
}


def found_in(folder):
    return {row.metric: row for row in collect(folder).rows}


def test_replies_are_told_by_method_with_intervals_over_questions(put, tmp_path):
    put(f"{FOLDER}/inference_per_sample.jsonl", SAMPLES, lines=True)

    rows = found_in(tmp_path)

    accuracy = rows["target_alone_em"]
    assert (accuracy.value, accuracy.n, accuracy.cell) == (pytest.approx(2 / 3), 3, "1a_stable_64tok")
    # Wilson's, of 2 in 3
    assert (accuracy.low, accuracy.high) == pytest.approx((0.20766, 0.93851), abs=1e-5)
    assert rows["target_alone_latency_s"].value == pytest.approx(8 / 3)
    assert rows["target_alone_f1"].value == pytest.approx(1 / 3)
    assert rows["latent_input_len"].value == 150
    assert rows["latent_peak_mem_mib"].value == 31000.5


@pytest.mark.parametrize("name", ["inference_per_sample.jsonl", "inference_aggregate.json"])
def test_a_cache_that_was_not_measured_and_replies_that_were_cut_are_void(put, tmp_path, name):
    """0.5 MB a token ignored grouped queries; a reply to embeddings lost as many tokens as went in."""
    is_aggregate = name.startswith("inference_agg")
    put(name, AGGREGATE if is_aggregate else SAMPLES, lines=not is_aggregate)

    rows = found_in(tmp_path)

    caches = {row.void for metric, row in rows.items() if "kv_" in metric}
    assert caches == {CACHE}
    assert {rows[f"latent_{key}"].void for key in ("em", "f1")} == {CUT}
    assert rows["target_alone_em"].void is None
    assert rows["latent_latency_s"].value is not None
    assert ("kv_saved_absolute_mb" in rows) == is_aggregate
    if not is_aggregate:
        assert rows["latent_output_len"].void == rows["latent_total_seq_len"].void == CUT
        assert rows["target_alone_output_len"].value == 50


def test_means_that_another_file_holds_too_say_so(put, tmp_path):
    put("alone/inference_aggregate.json", AGGREGATE)
    put("both/inference_aggregate.json", AGGREGATE | {"target_alone": method(0.75)})
    put("both/inference_per_sample.jsonl", SAMPLES, lines=True)

    rows = [row for row in collect(tmp_path).rows if row.metric == "target_alone_em"]

    told = {row.source: (row.value, row.n, row.flags) for row in rows}
    assert told["alone/inference_aggregate.json"] == (0.5, 3, ())
    assert told["both/inference_aggregate.json"] == (0.75, 3, (QUOTED,))
    assert told["both/inference_per_sample.jsonl"][2] == ()


def test_a_damaged_sample_costs_itself_and_is_named_with_its_line(put, tmp_path):
    lines = [json.dumps(record) for record in SAMPLES]
    wrong = json.dumps(sample(3, reply(1.0), reply(0.0, latency_sec="slow")))
    put("inference_per_sample.jsonl", "\n".join([*lines, wrong, '{"sample_id": 4}', '{"sample_id": 5, "tar']))

    found = collect(tmp_path)

    assert {row.n for row in found.rows if row.void is None} == {3}
    where = f"{tmp_path}/inference_per_sample.jsonl"
    assert [reason.split("; copy")[0] for reason in found.unreadable] == [
        f"{where}:4: latency_sec of latent is 'slow'; a number is needed",
        f"{where}:5: a record without a method's reply",
        f"{where}:6: cut off: the file ends inside it",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("inference_aggregate.json", {"hardware": "cpu", "bridged": {}}, "of a run of this project; collect"),
        ("inference_aggregate.json", {"latent": {"accuracy": {}}}, "num_samples of each method is needed"),
        (
            "inference_aggregate.json",
            {"latent": method(0.5) | {"accuracy": {"em": "x"}}},
            "latent_em is 'x'; a number is needed",
        ),
        ("inference_per_sample.jsonl", "", "it holds no record"),
        ("inference_per_sample.jsonl", '{"bridged": {"kv_bytes": 9}}\n', "of a run of this project; collect"),
    ],
)
def test_a_file_of_inference_that_is_none_is_refused_by_name(put, tmp_path, name, content, said):
    put(name, content)

    found = collect(tmp_path)

    (reason,) = found.unreadable
    assert reason.startswith(str(tmp_path / name)) and said in reason and found.rows == []
