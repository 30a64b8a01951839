"""Rows of benches, ours and the published ones, side by side."""

import json

import pytest

from latentbridge.audit.collect.table import collect

# as the published capacity bench writes them
CAPACITY = {
    **{"name": "pack_capacity", "avg_ms": 10.25, "tokens_per_s": 3.2e6, "bw_GiBps_strict": 293.0},
    **{"num_tokens": 32768, "hidden_dim": 8192, "num_experts": 64, "top_k": 2, "dtype": "float16"},
    **{"device": "cuda", "capacity_factor": 1.0, "avg_drop_rate": 0.0114, "bytes_per_token_strict": 98304},
}
PACK = {
    **{"name": "pack", "avg_ms": 2.5, "tokens_per_s": 6.5e6, "bw_GiBps_strict": 250.0},
    **{"num_tokens": 16384, "hidden_dim": 4096, "num_experts": 32, "top_k": 4, "dtype": "float16"},
    **{"device": "cuda", "bytes_per_token_strict": 49152, "pack_ms": 1.75, "combine_ms": 0.75},
    **{"load_mean": 2048.0, "load_std": 44.0, "load_cv": 0.0215, "seed": 17, "warmup": 10, "iters": 100},
    **{"ts": "2025-11-20T10:11:12", "git_sha": "bb9bb0b"},
}
# as our job writes them
OURS = {
    **{"num_experts": 64, "top_k": 2, "capacity_factor": 1.0, "drop_rate": 0.0125, "drop_rate_low": 0.012},
    **{"drop_rate_high": 0.013, "closed_form": 0.0124, "tokens_per_s": 9.5e6, "tokens_per_s_p10": 9.0e6},
    **{"tokens_per_s_p90": 9.75e6, "slots": 1024, "num_tokens": 32768, "width": 8192, "dtype": "fp16"},
    **{"preference": 0.0, "iterations": 200, "seed": 19, "device": "cpu"},
}


def test_both_capacity_benches_have_one_name_for_one_quantity(put, tmp_path):
    put("theirs/capacity_cf_multi.jsonl", [CAPACITY, CAPACITY | {"capacity_factor": 1.25}], lines=True)
    put("ours/capacity.jsonl", [OURS, OURS | {"capacity_factor": 1.25, "slots": 1280}], lines=True)

    found = collect(tmp_path)

    rows = {(row.layout, row.metric): row for row in found.rows}
    assert (found.files, found.unreadable, len({row.run for row in found.rows})) == (2, [], 2)
    # a run has one config, whatever the factor: another file with it is a twin
    assert len({row.config for row in found.rows}) == 2
    assert {row.cell for row in found.rows} == {"E64_K2"} and {row.label for row in found.rows} == {"final"}
    assert rows["moe-routing-bench", "c1_drop_rate"].value == 0.0114
    assert rows["moe-routing-bench", "c1.25_tokens_per_s"].value == 3.2e6
    assert rows["moe-routing-bench", "c1_avg_ms"].value == 10.25
    assert "more room costs nothing" in rows["moe-routing-bench", "c1_tokens_per_s"].flags[0]
    ours = rows["latentbridge", "c1_drop_rate"]
    assert (ours.value, ours.low, ours.high, ours.n, ours.seed) == (0.0125, 0.012, 0.013, 200, 19)
    assert rows["latentbridge", "c1.25_tokens_per_s"].flags == ()


def test_a_pack_has_its_times_and_loads_and_no_setting_for_a_number(put, tmp_path):
    put("results/pack.jsonl", [PACK], lines=True)

    rows = collect(tmp_path).rows

    assert {row.metric: row.value for row in rows} == {
        **{"avg_ms": 2.5, "tokens_per_s": 6.5e6, "bw_GiBps_strict": 250.0, "bytes_per_token_strict": 49152},
        **{"pack_ms": 1.75, "combine_ms": 0.75, "load_mean": 2048.0, "load_std": 44.0, "load_cv": 0.0215},
    }
    assert {(row.run, row.seed) for row in rows} == {("results/pack/E32_K4_16384x4096", 17)}


def test_a_setting_that_was_measured_again_is_a_run_of_its_own_and_called_a_twin(put, tmp_path):
    again = PACK | {"ts": "2025-11-21T01:02:03", "avg_ms": 2.75}
    put("pack.jsonl", [PACK, again, PACK | {"top_k": 1}], lines=True)

    flags = {row.run.rpartition("/")[2]: row.flags for row in collect(tmp_path).rows}

    first = f"{tmp_path.name}/pack/E32_K4_16384x4096"
    assert flags == {
        "E32_K4_16384x4096": (),
        "E32_K4_16384x4096_2": (f"identical config to {first}",),
        "E32_K1_16384x4096": (),
    }


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([CAPACITY, {"avg_ms": 3.0}], "capacity_x.jsonl:2: no row of a bench: it lacks num_experts, top_k"),
        ([[1, 2]], "capacity_x.jsonl:1: not a JSON record"),
        ([], "it holds no row"),
        ([CAPACITY | {"avg_drop_rate": "few"}], "c1_drop_rate is 'few'; a number is needed"),
    ],
)
def test_a_file_that_is_no_bench_is_refused_with_its_line(put, tmp_path, records, said):
    put("capacity_x.jsonl", records, lines=True)

    found = collect(tmp_path)

    assert (found.rows, found.files) == ([], 0) and said in found.unreadable[0]


def test_what_nothing_reads_is_named_and_what_others_read_is_not(put, tmp_path):
    """A file of another name was passed over without a word."""
    put("pack.jsonl", [PACK], lines=True)
    for name in ("comparison_summary.json", "hparams.json", "eval_samples_step_0.jsonl", "notes.md", "b.csv"):
        put(name, "{}")

    found = collect(tmp_path)

    assert found.unknown == ["b.csv", "comparison_summary.json"]
    assert "of no kind that is read here: b.csv, comparison_summary.json" in [*found.lines()]


def test_a_cut_row_of_a_bench_is_named_and_the_rows_before_it_stay(put, tmp_path):
    put("capacity_x.jsonl", json.dumps(CAPACITY) + '\n{"num_exp')

    found = collect(tmp_path)

    assert found.rows
    assert "capacity_x.jsonl:2: cut off: the file ends inside it" in found.unreadable[0]
