"""One run once more: the commands that repeat it, and an honest comparison."""

from __future__ import annotations

import json
import shlex

import pytest
from folders import end, planned_launch

from latentbridge.launch.record import Launch
from latentbridge.launch.view.reproduce import compare, provenance, reproduce
from latentbridge.rundir import append_jsonl


@pytest.fixture
def launch(project, write_spec):
    (project / "slurm" / "test.yaml").write_text(
        "executor: slurm\nsetup: [module load cuda]\nenvironment: {NCCL_DEBUG: WARN}\n"
    )
    write_spec("""
        name: s
        job: count
        cluster: test
        runs: {a: {}}
        resources: {nodes: 2, gpus_per_node: 3, cpus_per_gpu: 5}
        """)
    return planned_launch(project)


def log_numbers(run, loss, accuracy=None):
    append_jsonl(run.train_log, {"step": 50, "loss": 9.0, "losses": {"lm": 9.0}})
    append_jsonl(run.train_log, {"step": 100, "loss": loss, "losses": {"lm": loss}, "samples_per_s": loss})
    metric = {"n": 8, "void": "no answers"} if accuracy is None else {"n": 8, "value": accuracy}
    append_jsonl(
        run.metrics_log, {"step": 50, "label": "50", "metrics": {"accuracy": {"value": 0.1, "n": 8}}}
    )
    append_jsonl(run.metrics_log, {"step": 100, "label": "final", "metrics": {"accuracy": metric}})


def test_the_commands_run_the_copied_code_on_a_copy_of_the_config(launch, capsys):
    before = sorted(launch.path.parent.iterdir())

    assert reproduce(launch, "a", execute=False) == 0

    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert lines[0] == "module load cuda"
    words = [shlex.split(line.rstrip("\\")) for line in lines]
    folder = words[1][2]
    assert words[1][:2] == ["mkdir", "-p"] and "/runs/reproduced/a_" in folder
    assert words[2] == ["cp", f"{launch.path}/a/config.yaml", f"{launch.path}/a/manifest.json", f"{folder}/"]
    assert words[3][0] == "env" and words[3][1].split(":")[0] == f"PYTHONPATH={launch.code}"
    assert {"OMP_NUM_THREADS=5", "NCCL_DEBUG=WARN"} < set(words[3])
    # 2 nodes x 3 ranks, side by side
    assert "--nproc-per-node=6" in words[4] and "--standalone" in words[4]
    assert words[4][-3:] == [f"{launch.code}/jobs/count.py", "--config", f"{folder}/config.yaml"]
    assert sorted(launch.path.parent.iterdir()) == before, "printing writes nothing"


def test_what_is_no_longer_as_it_was_is_told_loudly(launch):
    assert not [line for line in provenance(launch) if "WARNING" in line]

    packages = launch.path / "packages.txt"
    packages.write_text(packages.read_text().replace("pydantic==", "pydantic==0.") + "gone==1.0\n")
    (launch.code / "jobs" / "count.py").write_text("pass\n")

    _, edited, differ = provenance(launch)
    assert "WARNING: this copy was edited" in edited
    assert (
        "WARNING: 2 packages differ" in differ and "gone 1.0 -> absent" in differ and "pydantic 0." in differ
    )


def test_commit_and_uncommitted_changes_are_told(launch):
    plan = json.loads((launch.path / "plan.json").read_text())
    plan["code"] |= {"sha": "abc123", "dirty": True}
    (launch.path / "plan.json").write_text(json.dumps(plan))

    assert provenance(Launch(launch.path))[0].endswith(
        "commit abc123, with uncommitted changes (code/uncommitted.diff)"
    )


@pytest.fixture
def pair(launch, tmp_path):
    run = launch.run("a")
    end(run, "done")
    copy = type(run.folder)(tmp_path / "copy")
    copy.path.mkdir()
    return run.folder, copy


def test_equal_numbers_are_equal_whatever_the_speed(pair):
    for run in pair:
        log_numbers(run, loss=0.5, accuracy=0.25)
    for run, seconds in zip(pair, (1.25, 1.5), strict=True):
        metrics = {"bridged_ttft_s": {"value": seconds, "n": 2}}
        append_jsonl(run.metrics_log, {"step": 100, "label": "final", "metrics": metrics})
    append_jsonl(pair[1].train_log, {"step": 100, "loss": 0.5, "losses": {"lm": 0.5}, "samples_per_s": 77.0})

    is_equal, lines = compare(*pair)

    assert is_equal
    assert lines == ["equal to the last digit: loss at update 100, lm at update 100, final accuracy"]


def test_each_number_that_differs_is_told_with_by_how_much(pair):
    log_numbers(pair[0], loss=0.5, accuracy=0.25)
    log_numbers(pair[1], loss=0.75)

    assert compare(*pair) == (
        False,
        [
            "final accuracy: 0.25 in the original, None now",
            "lm at update 100: 0.5 in the original, 0.75 now, differs by 0.25",
            "loss at update 100: 0.5 in the original, 0.75 now, differs by 0.25",
        ],
    )


def test_without_numbers_nothing_is_called_equal(pair):
    is_equal, lines = compare(*pair)

    assert not is_equal
    assert "nothing to compare with" in lines[0]


def test_a_repetition_is_run_and_compared(project, write_spec, capfd):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 4}}")
    launch = planned_launch(project)
    run = launch.run("a")
    end(run, "done")
    append_jsonl(run.folder.train_log, {"step": 4, "loss": 0.25})

    assert reproduce(launch, "a", execute=True) == 0

    assert "equal to the last digit: loss at update 4" in capfd.readouterr().out
    (copy,) = (launch.path.parent / "reproduced").iterdir()
    assert (copy / "DONE").exists() and copy.name.startswith("a_")
