"""The temperature study's list of runs and its two reports, as its scripts write them."""

import pytest

from latentbridge.audit.collect.reports import LEAST, OLDER, QUOTED, SWALLOWED, UNCHECKED
from latentbridge.audit.collect.table import collect

LISTED = {"experiments": ["temp_0.7", "temp_2.0"], "num_completed": 2, "num_requested": 3}
SUMMARY = {
    "experiment_overview": {"total_experiments": 3, "experiment_names": ["temp_0.7", "temp_10.0"]},
    "best_results": {
        "temperature_ablation": {
            **{"experiment": "temp_0.7", "temperature": 0.7},
            **{"best_loss": 10.5, "final_loss": 14.5, "final_accuracy": 0.0},
        },
        "temperature_schedule": None,
    },
    "temperature_analysis": {
        **{"tested_temperatures": [0.7, 2.5, 10.0], "losses": [10.5, 10.75, 11.0]},
        **{"best_temperature": 0.7, "worst_temperature": 10.0, "improvement": 4.5},
    },
    "schedule_analysis": {"schedules_tested": ["schedule_exp"], "losses": {"schedule_exp": 11.25}},
}
SPECIALISED = {
    "summary": {"most_balanced_experts": {"experiment": "temp_2.0", "gini_coefficient": 0.04}},
    "per_experiment": {
        "temp_0.7": {
            **{"temperature": 0.7, "final_loss": 14.5, "final_accuracy": 0.25},
            "expert_utilization": {"distribution": [0.5, 0.375, 0.125], "mean": 1 / 3, "gini": 0.25},
            "routing_entropy": {"initial": 0.0, "final": 0.0, "mean": 0.0, "std": 0.0},
        }
    },
    "insights": ["Higher temperature improves load balancing"],
}


def study(final, least):
    return {"final_metrics": {"val_loss": final}, "history": {"steps": [10], "val_losses": [least]}}


def found_in(folder, source):
    rows = [row for row in collect(folder).rows if row.source.endswith(source)]
    return {(row.run, row.label, row.metric): row for row in rows}


def test_runs_that_failed_without_a_word_are_told_and_a_listed_one_without_results_is_void(put, tmp_path):
    put("results/experiment_summary.json", LISTED)
    put("results/temp_0.7/metrics.json", study(14.5, 10.5))

    rows = found_in(tmp_path, "experiment_summary.json")

    done = rows["results", "final", "experiments_completed"]
    assert (done.value, done.flags) == (2, (SWALLOWED,))
    assert rows["results", "final", "experiments_requested"].value == 3
    lost = rows["results/temp_2.0", "final", "val_loss"]
    assert (lost.value, lost.void) == (None, "listed as completed, and no metrics.json is beside the list")
    assert len(rows) == 3


def test_an_empty_list_of_runs_is_none_completed_and_a_count_that_differs_from_it_is_void(put, tmp_path):
    put("none/experiment_summary.json", {"experiments": [], "num_completed": 0, "num_requested": 2})
    put("odd/experiment_summary.json", LISTED | {"num_completed": 4})

    rows = found_in(tmp_path, "experiment_summary.json")

    assert rows["none", "final", "experiments_completed"].value == 0
    assert rows["odd", "final", "experiments_completed"].void == "the file lists 2, and says 4"


def test_a_reports_least_losses_are_of_their_runs_and_say_what_they_are_the_least_of(put, tmp_path):
    put("analysis/summary_report.json", SUMMARY)

    rows = found_in(tmp_path, "summary_report.json")

    assert {key: row.value for key, row in rows.items()} == {
        ("analysis/temp_0.7", "best", "val_loss"): 10.5,
        ("analysis/temperature=2.5", "best", "val_loss"): 10.75,
        ("analysis/temp_10.0", "best", "val_loss"): 11.0,
        ("analysis/schedule_exp", "best", "val_loss"): 11.25,
        ("analysis/temp_0.7", "final", "val_loss"): 14.5,
        ("analysis/temp_0.7", "final", "val_accuracy"): 0.0,
    }
    assert rows["analysis/temp_0.7", "best", "val_loss"].flags == (UNCHECKED, LEAST)
    assert rows["analysis/temp_0.7", "final", "val_loss"].flags == (UNCHECKED,)


def test_a_report_has_loads_of_experts_and_entropies_that_were_never_recorded_are_void(put, tmp_path):
    put("analysis/specialization_report.json", SPECIALISED)

    rows = {key[2]: row for key, row in found_in(tmp_path, "report.json").items()}

    values = {metric: row.value for metric, row in rows.items() if row.void is None}
    assert values == {
        **{"val_loss": 14.5, "val_accuracy": 0.25, "expert_utilization_gini": 0.25},
        **{"expert_utilization[0]": 0.5, "expert_utilization[1]": 0.375, "expert_utilization[2]": 0.125},
    }
    gone = {metric for metric, row in rows.items() if str(row.void).startswith("0.0 at every evaluation")}
    assert gone == {f"routing_entropy_{key}" for key in ("initial", "final", "mean", "std")}


@pytest.mark.parametrize(
    ("kept", "value", "said"), [(study(14.5, 10.5), 14.5, None), (study(24.0, 10.5), None, OLDER)]
)
def test_a_report_of_an_older_batch_of_runs_gives_no_number(put, tmp_path, kept, value, said):
    """The committed reports were of three runs that 13 others of the same names had replaced."""
    put("exp10/results/temp_0.7/metrics.json", kept)
    put("exp10/analysis/specialization_report.json", SPECIALISED)
    put("exp10/analysis/summary_report.json", SUMMARY)

    rows = found_in(tmp_path, "report.json")
    final = {key[2]: row for key, row in rows.items() if key[:2] == ("exp10/analysis/temp_0.7", "final")}

    assert (final["val_loss"].value, final["expert_utilization[0]"].value) == (value, value and 0.5)
    assert said is None or {row.void for row in final.values()} == {said}
    assert final["val_loss"].flags == ((QUOTED,) if value else ())
    assert rows["exp10/analysis/temp_0.7", "best", "val_loss"].flags == (QUOTED, LEAST)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("experiment_summary.json", {"experiments": []}, "the key num_completed, num_requested is missing"),
        ("experiment_summary.json", LISTED | {"experiments": 2}, "experiments must be a list of names"),
        ("experiment_summary.json", LISTED | {"num_completed": "two"}, "experiments_completed is 'two'"),
        ("summary_report.json", {"best_results": {}}, "the key experiment_overview is missing"),
        (
            "summary_report.json",
            SUMMARY | {"temperature_analysis": {"tested_temperatures": [1.0], "losses": []}},
            "0 losses of 1 tested_temperatures",
        ),
        ("specialization_report.json", {"per_experiment": {"a": {"final_loss": 1.5}}}, "'final_accuracy'"),
        (
            "specialization_report.json",
            {"per_experiment": [1]},
            "not what a specialization_report.json holds",
        ),
    ],
)
def test_a_report_that_is_none_is_refused_by_name_and_costs_no_other(put, tmp_path, name, content, said):
    put(f"odd/{name}", content)
    put("analysis/specialization_report.json", SPECIALISED)

    found = collect(tmp_path)

    (reason,) = found.unreadable
    assert reason.startswith(str(tmp_path / "odd" / name)) and said in reason
    assert {row.run for row in found.rows} == {"analysis/temp_0.7"}
