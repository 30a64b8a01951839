import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.launch.preserve import preserve
from latentbridge.metric import Metric
from latentbridge.rundir import read_json, read_jsonl, write_json
from latentbridge.translator import inference
from latentbridge.translator.metrics import INFERENCE, MEASURED
from latentbridge.translator.train import Translation, train

TIMED = {"eval.inference_examples": 2}
# of the tiny models in float32: a GPT-2 of 3 layers and width 12, a Llama of 2 and 20
SOURCE_BYTES, TARGET_BYTES = 2 * 3 * 12 * 4, 2 * 2 * 20 * 4


@pytest.fixture
def measure(configure, make_run) -> Callable[..., tuple[Translation, dict[str, Metric]]]:
    """The final evaluation of an untrained bridge with open gates."""

    def evaluate(changes: dict[str, Any] | None = None, name: str = "a") -> tuple[Translation, Any]:
        workload = Translation(configure({**TIMED, **(changes or {})}), make_run(name))
        workload.model.eval()
        return workload, workload.evaluate(workload.model, 2, "final")

    return evaluate


def folder(workload: Translation) -> Any:
    return workload.evaluator._run.folder


def costs(workload: Translation) -> list[dict[str, Any]]:
    return list(read_jsonl(folder(workload).inference_samples))


def test_every_method_is_charged_what_its_models_read_and_said(measure):
    workload, metrics = measure()
    prompts = workload.evaluator.prompts

    for index, cost in enumerate(costs(workload)):
        source, prompt = prompts.source.lengths[index], prompts.prompt.lengths[index]
        said = cost["source_alone"]["output_len"]
        # <bos>, then 3 soft tokens and the cue "A: "; the same of the question's end and a line break
        expected = {"source_alone": source, "target_alone": 1 + prompt, "bridged": 7, "cut_text": 8}
        assert {name: cost[name]["input_len"] for name in expected} == expected
        assert cost["sample_id"] == index and cost["gold_answer"] == prompts.problems[index].gold
        for name in MEASURED:
            each = SOURCE_BYTES if name == "source_alone" else TARGET_BYTES
            length = cost[name]["input_len"] + cost[name]["output_len"]
            assert cost[name]["kv_bytes"] == length * each
            assert cost[name]["peak_mem_bytes"] is None
        beside = {name: cost[name]["source_kv_bytes"] / SOURCE_BYTES for name in MEASURED}
        assert beside == {**dict.fromkeys(MEASURED, 0), "bridged": source, "cascade": source + said}
    saved = [TARGET_BYTES * (prompts.prompt.lengths[index] - 6) / 2**20 for index in (0, 1)]
    assert metrics["kv_saved_mib"].value == pytest.approx(sum(saved) / 2)
    assert metrics["kv_saved_mib"].n == metrics["bridged_kv_mib"].n == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt_mode": "soft_plus_text"},
        {"prompt_mode": "soft_plus_text", "injection": "adapter", "adapter_scale": 0.7},
        {"model.kind": "dit", "model.gate_init": 0.0},
        {"cache_source_states": True},
    ],
    ids=["gated", "with text", "adapter", "dit", "stored states"],
)
def test_a_timed_reply_is_the_one_of_the_evaluation(measure, changes: dict[str, Any]):
    workload, _ = measure({"eval.max_new_tokens": 20, **changes})
    evaluated = list(read_jsonl(folder(workload).eval_samples("final")))

    for cost, record in zip(costs(workload), evaluated, strict=False):
        for name in MEASURED:
            key = name.removesuffix("_alone")
            assert cost[name]["text"] == record[f"{key}_full"], name
            assert cost[name]["is_right"] == record[f"{name}_match"]


def test_soft_tokens_on_top_of_the_text_save_less_than_nothing(measure):
    on_top = measure({"prompt_mode": "soft_plus_text"}, "on_top")
    added = measure({"prompt_mode": "soft_plus_text", "injection": "adapter"}, "added")

    assert on_top[1]["kv_saved_mib"].value == pytest.approx(-3 * TARGET_BYTES / 2**20)
    assert added[1]["kv_saved_mib"].value == 0
    savings = read_json(folder(on_top[0]).inference_aggregate)["kv_cache_savings"]
    lengths = [1 + on_top[0].evaluator.prompts.prompt.lengths[index] for index in (0, 1)]
    assert savings["absolute_bytes"] == -3 * TARGET_BYTES
    assert savings["relative"] == pytest.approx(-6 / sum(lengths))
    assert savings["absolute_bytes_less_source"] < savings["absolute_bytes"]


def test_what_the_source_reads_and_says_is_on_the_account_of_what_needs_it(measure, monkeypatch):
    """The seed never charged it; here the clock only moves when a model reads."""
    seconds = [0.0]
    monkeypatch.setattr(inference, "_now", lambda device: seconds[0])

    def tick(cost: float) -> Callable[..., None]:
        def move(*_: Any) -> None:
            seconds[0] += cost

        return move

    # states that are on the disk and ready must not be used
    workload, _ = measure({"cache_source_states": True}, "warm")
    workload.source.model.base_model.register_forward_pre_hook(tick(100.0))
    workload.target.model.base_model.register_forward_pre_hook(tick(1.0))
    workload.model.register_forward_pre_hook(tick(10_000.0))
    workload.evaluate(workload.model, 2, "final")

    for cost in costs(workload):
        said = cost["source_alone"]["output_len"]
        found = {name: cost[name]["ttft_s"] for name in MEASURED}
        assert found == {
            "source_alone": 100.0,
            "target_alone": 1.0,
            "cut_text": 1.0,
            "bridged": 10_101.0,
            "cascade": 100.0 * said + 1.0,
        }
        assert cost["bridged"]["tpot_s"] == cost["cascade"]["tpot_s"] == 1.0
        assert cost["bridged"]["latency_s"] == 10_101.0 + cost["bridged"]["output_len"] - 1


def test_the_source_reads_whole_prompts_though_they_begin_alike(measure, monkeypatch):
    """Behind a beginning that was read before, nine tenths of a prompt would cost nothing."""
    monkeypatch.setattr("latentbridge.translator.states.WORTH_SHARING", 1)
    workload, _ = measure()
    assert len(workload.evaluator.prompts.source.shared) > 0
    widths: list[int] = []
    monkeypatch.setattr(
        workload.source.model,
        "forward",
        lambda real=workload.source.model.forward, **words: (
            widths.append(words["input_ids"].shape[1]) or real(**words)
        ),
    )
    workload.evaluator.inference(workload.model)

    # a trial and a timed one of each; tables are as wide as a multiple of 8 or their longest row
    lengths = [workload.evaluator.prompts.source.lengths[index] for index in (0, 0, 1, 1)]
    assert all(0 <= width - length < 8 for width, length in zip(widths, lengths, strict=True))


def test_a_reply_of_one_token_has_no_time_for_further_ones(measure):
    workload, metrics = measure({"eval.max_new_tokens": 1})

    assert [cost["bridged"]["tpot_s"] for cost in costs(workload)] == [None, None]
    assert metrics["bridged_tpot_s"] == Metric(value=None, n=0, void="no reply has a second token")
    assert metrics["bridged_ttft_s"].value > 0
    assert read_json(folder(workload).inference_aggregate)["bridged"]["tpot_s"] is None


def test_means_and_extremes_of_a_method_are_those_of_its_problems(measure):
    workload, metrics = measure({"eval.inference_examples": 5})
    each = [cost["cascade"]["ttft_s"] for cost in costs(workload)]
    found = read_json(folder(workload).inference_aggregate)["cascade"]

    assert found["num_samples"] == found["accuracy"]["n"] == len(each) == 5
    assert found["ttft_s"] == pytest.approx({"mean": sum(each) / 5, "min": min(each), "max": max(each)})
    assert metrics["cascade_ttft_s"].value == pytest.approx(sum(each) / 5)


def test_a_parked_source_is_fetched_once_for_all_that_is_timed(measure, monkeypatch):
    moves: list[Any] = []
    workload, _ = measure({"cache_source_states": True})
    # the answers of the evaluation are known by now, so only what is timed needs the source
    monkeypatch.setattr(workload.source.model, "to", moves.append)
    workload.evaluate(workload.model, 2, "final")

    assert len(moves) == 2


def test_only_the_final_evaluation_times_and_only_where_asked(measure):
    workload, final = measure()
    assert set(INFERENCE) <= set(final)
    assert set(workload.config.metric_names()) == set(final)
    early = workload.evaluate(workload.model, 2, "2")
    assert not set(INFERENCE) & set(early)

    silent, metrics = measure({"eval.inference_examples": 0}, "silent")
    assert not set(INFERENCE) & {*metrics, *silent.config.metric_names()}
    assert not folder(silent).inference_samples.exists()


def test_more_problems_than_are_evaluated_cannot_be_timed(configure):
    with pytest.raises(ConfigError, match=r"eval\.inference_examples is 8, but there are 7 problems"):
        configure({"eval.inference_examples": 8})


def test_two_ranks_measure_the_same_and_rank_0_writes_what_is_archived(
    configure, make_run, ranks, tmp_path: Path
):
    run: Run = make_run("cell-s1")
    config = configure({**TIMED, "train.batch_size": 4})

    # a run asks for its rank when it is made
    first, second = ranks(lambda: train(config, Run(run.folder)))
    assert first["final"] == second["final"]
    record = [record for record in read_jsonl(run.folder.metrics_log) if record["label"] == "final"]
    assert len(record) == 1 and set(INFERENCE) <= set(record[0]["metrics"])
    assert len(list(read_jsonl(run.folder.inference_samples))) == 2

    launch = run.folder.path.parent
    plan = [{"name": "cell-s1", "cell": "cell", "seed": 1, "id": "x", "folder": "cell-s1"}]
    write_json(launch / "plan.json", {"name": "launch", "runs": plan, "compare": []})
    run.folder.mark("DONE", {})
    archive = preserve(launch, tmp_path / "archives")
    for path in (run.folder.inference_samples, run.folder.inference_aggregate):
        assert (archive / "cell-s1" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((archive / "cell-s1" / "inference_aggregate.json").read_text())["hardware"] == "cpu"


def test_passthrough_is_timed_as_well(configure, make_run, pair):
    changes = {"target.model": pair["source"], "model.kind": "passthrough", "train.steps": 0}
    workload = Translation(configure({**TIMED, **changes}), make_run())
    metrics = workload.evaluate(workload.model.eval(), 0, "final")

    assert metrics["bridged_kv_mib"].value < metrics["target_alone_kv_mib"].value
    assert metrics["bridged_ttft_s"].value > 0
