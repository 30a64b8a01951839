"""Who is best, why, and what then stands in the config; and every reason to refuse an answer."""

from __future__ import annotations

import pytest

from latentbridge.config import read_yaml
from latentbridge.errors import RunError
from latentbridge.launch.cells.best_of import BestOf, resolve, resolved_config
from latentbridge.rundir import RunDir, append_jsonl, write_atomic


@pytest.fixture
def finished(tmp_path):
    """Makes one finished run: its metric's final value (None: void), its temperature, its label."""

    def make(name, value, temperature=1.0, label="final", metric="loss", state="DONE"):
        folder = RunDir(tmp_path / name)
        folder.path.mkdir()
        write_atomic(folder.config, f"seed: 3\nrouter: {{temperature: {temperature}, top_k: 2}}\n")
        # an evaluation in mid-training, far better than the final one
        append_jsonl(
            folder.metrics_log, {"step": 5, "label": "5", "metrics": {metric: {"value": -99, "n": 4}}}
        )
        final = {"n": 4, "void": "no samples"} if value is None else {"n": 4, "value": value}
        append_jsonl(folder.metrics_log, {"step": 9, "label": label, "metrics": {metric: final}})
        if state:
            folder.mark(state, {})
        return folder

    return make


def by_loss(*candidates, mode="min"):
    return {"router.temperature": BestOf(best_of="t_*", metric="loss", mode=mode, candidates=candidates)}


@pytest.mark.parametrize(("mode", "winner", "bound"), [("min", 0.7, "lowest"), ("max", 1.4, "highest")])
def test_the_mean_over_seeds_decides_and_the_reason_names_all(finished, mode, winner, bound):
    # means 2.5, 2.0 and 3.0; the best single run belongs to the first
    runs = {
        "t_1": [finished("t_1-s1", 1.0, 1.0), finished("t_1-s2", 4.0, 1.0)],
        "t_2": [finished("t_2-s1", 1.5, 0.7), finished("t_2-s2", 2.5, 0.7)],
        "t_3": [finished("t_3-s1", 3.0, 1.4), finished("t_3-s2", 3.0, 1.4)],
    }

    values, why = resolve(by_loss("t_1", "t_2", "t_3", mode=mode), runs)

    assert values == {"router.temperature": winner}
    assert why["router.temperature"].startswith(f"t_{2 if mode == 'min' else 3} has the {bound} loss, ")
    assert "t_1 2.5" in why["router.temperature"]


def test_a_tie_goes_to_the_first_of_the_spec(finished):
    runs = {"t_b": [finished("t_b", 2.0, 0.2)], "t_a": [finished("t_a", 2.0, 0.9)]}

    assert resolve(by_loss("t_b", "t_a"), runs)[0] == {"router.temperature": 0.2}
    assert resolve(by_loss("t_b", "t_a", mode="max"), runs)[0] == {"router.temperature": 0.2}


def test_a_whole_section_can_be_taken_over(finished):
    reference = by_loss("t_1")["router.temperature"]

    values, _ = resolve({"router": reference}, {"t_1": [finished("t_1", 2.0, 0.4)]})

    assert values == {"router": {"temperature": 0.4, "top_k": 2}}


def test_a_record_read_back_from_json_is_the_same_reference():
    reference = by_loss("t_1", "t_2")["router.temperature"]

    assert BestOf.model_validate(reference.model_dump(mode="json")) == reference


def test_the_config_gets_the_value_and_keeps_the_rest(finished):
    waiting = finished("best", 0.0)
    write_atomic(
        waiting.config,
        "seed: 8\nrouter:\n  temperature: {best_of: 't_*', metric: loss, mode: min}\n  top_k: 2\n",
    )

    write_atomic(waiting.config, resolved_config(waiting, {"router.temperature": 0.7}))

    assert read_yaml(waiting.config).values == {"seed": 8, "router": {"temperature": 0.7, "top_k": 2}}


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"value": None}, r"/t_1-s2: its 'loss' is void \(no samples\)"),
        ({"value": 2.0, "metric": "other"}, r"/t_1-s2: its final evaluation has no 'loss' but other"),
        ({"value": 2.0, "label": "9"}, "/t_1-s2: it has no final evaluation"),
        ({"value": 2.0, "state": "FAILED"}, "/t_1-s2: it is FAILED, not DONE"),
        ({"value": 2.0, "state": None}, "/t_1-s2: it is unfinished, not DONE"),
    ],
    ids=["void", "not measured", "not final", "failed", "unfinished"],
)
def test_a_candidate_that_cannot_be_judged_is_an_error_and_never_just_left_out(finished, second, complaint):
    runs = {"t_1": [finished("t_1-s1", 1.0), finished("t_1-s2", **second)], "t_2": [finished("t_2", 2.0)]}

    with pytest.raises(RunError, match=complaint):
        resolve(by_loss("t_1", "t_2"), runs)
