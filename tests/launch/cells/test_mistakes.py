"""Mistakes in a spec: each stops at once with place, key, rule and remedy, and asks no scheduler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentbridge.launch.cli import main

TOOLS = ("sbatch", "squeue", "scontrol", "sacct", "sinfo", "scancel", "srun", "sacctmgr")

# what is written under `name: s` and `job: count` (lines 1 and 2), and what the answer must hold
MISTAKES = {
    "unknown key of the spec": ("sead: [1]", ["spec.yaml:3:", "'sead'", "did you mean 'seeds'"]),
    "unknown setting": (
        "runs:\n  a: {stebs: 4}",
        ["spec.yaml:4:", "run 'a'", "unknown key 'stebs'", "did you mean 'steps'", "Known here: seed, steps"],
    ),
    "unknown nested setting": (
        "runs:\n  a:\n    source.modle: x",
        ["spec.yaml:5:", "'source.modle'", "did you mean 'model'"],
    ),
    "unknown setting in a grid": (
        "grid:\n  step: [1, 2]",
        ["spec.yaml:4:", "run 'step=1'", "'step'", "did you mean 'steps'"],
    ),
    "number as text": (
        'runs:\n  a: {steps: "32"}',
        ["spec.yaml:4:", "'steps' is '32' (text)", "without quotes"],
    ),
    "fraction where a count belongs": (
        "runs:\n  a: {steps: 3.5}",
        ["spec.yaml:4:", "'steps' is 3.5 (a number)", "valid integer"],
    ),
    "yes for true": (
        "runs:\n  a: {steps: yes}",
        ["spec.yaml:4:", "'steps' is 'yes' (text)", "valid integer"],
    ),
    "run without a mapping": (
        "runs:\n  a: 5",
        ["spec.yaml:4:", "'runs.a' is 5", "must be a mapping, e.g. {}"],
    ),
    "run left empty": ("runs:\n  a:", ["spec.yaml:4:", "'runs.a' is empty", "must be a mapping, e.g. {}"]),
    "runs as a list": (
        "runs: [a, b]",
        ["spec.yaml:3:", "'runs' is ['a', 'b'] (a list)", "must be a mapping"],
    ),
    "grid value without brackets": (
        "grid:\n  steps: 4",
        ["spec.yaml:4:", "'grid.steps' is 4", "must be a list, in brackets"],
    ),
    "empty grid": ("grid:\n  steps: []", ["spec.yaml:4:", "'grid.steps' is empty", "at least one value"]),
    "value twice in a grid": (
        "grid:\n  steps: [1, 2, 1]",
        ["spec.yaml:4:", "'grid.steps' lists 1 twice", "drop one"],
    ),
    "unequal zip": (
        "zip:\n  steps: [1, 2]\n  step_s: [0.1]",
        ["spec.yaml:3:", "'steps': 2, 'step_s': 1", "differ in length", "make them equal"],
    ),
    "one key in grid and zip": (
        "grid: {steps: [1]}\nzip: {steps: [2]}",
        ["spec.yaml:4:", "'steps' is in grid and in zip", "drop one"],
    ),
    "a run's setting that the grid overrules": (
        "runs: {a: {steps: 4}}\ngrid: {steps: [5, 6]}",
        ["spec.yaml:3:", "run 'a'", "'steps' is set here and by configs/spec.yaml:4", "keep one"],
    ),
    "exclude that hits nothing": (
        "grid: {steps: [1]}\nexclude:\n  - {step: 1}",
        ["spec.yaml:5:", "{'step': 1}", "matches no cell", "did you mean 'steps'"],
    ),
    "duplicate key": (
        "seeds: [1]\nseeds: [2]",
        ["spec.yaml:4:", "'seeds'", "already set in line 3", "keep one"],
    ),
    "one setting in two ways": (
        "runs:\n  a:\n    source.model: x\n    source: {model: y}",
        ["spec.yaml:6:", "'source.model'", "already set at configs/spec.yaml:5", "keep one"],
    ),
    "reaching into a number": (
        "runs:\n  a: {steps.deep: 4}\nbase: plain",
        ["spec.yaml:4:", "'steps.deep' reaches into 'steps'", "3 (an integer), not a mapping"],
    ),
    "negative seed": (
        "seeds:\n  - 1\n  - -1",
        ["spec.yaml:5:", "'seeds.1' is -1", "greater than or equal to 0"],
    ),
    "repeated seed": ("seeds: [1, 1]", ["spec.yaml:3:", "seed 1 is listed twice", "drop one"]),
    "seed in a run beside seeds": (
        "seeds: [1]\nruns:\n  a: {seed: 5}",
        ["spec.yaml:5:", "'seed'", "the spec lists seeds", "keep one"],
    ),
    "swap of one": (
        "runs:\n  a: {swap: source}",
        ["spec.yaml:4:", "swap is 'source'", "write [source, target]"],
    ),
    "swap of the unknown": (
        "runs:\n  a: {swap: [sauce, target], source.model: x, target.model: y}",
        ["spec.yaml:4:", "'sauce'", "not set", "did you mean 'source'", "Set: source, target"],
    ),
    "need of an unknown run": (
        "runs: {one: {}, two: {steps: 9}}\nneeds:\n  two: [ono]",
        ["spec.yaml:5:", "no run is called 'ono'", "did you mean 'one'", "Runs: one, two"],
    ),
    "needs in a circle": (
        "runs: {one: {}, two: {steps: 9}}\nneeds:\n  one: [two]\n  two: [one]",
        ["spec.yaml:5:", "'one' needs itself: one -> two -> one", "cut the circle"],
    ),
    "three that wait for each other": (
        "runs: {x: {}, y: {steps: 4}, z: {steps: {best_of: y, metric: m, mode: min}}}\n"
        "needs:\n  x: [z]\n  y: [x]",
        ["spec.yaml:5:", "'x' needs itself: x -> z -> y -> x", "cut the circle"],
    ),
    "comparison with an unknown run": (
        "runs: {one: {}}\ncompare:\n  - {baseline: one, against: [ono], metric: nll}",
        ["spec.yaml:5:", "no run is called 'ono'", "did you mean 'one'"],
    ),
    "comparison with itself": (
        "runs: {one: {}}\ncompare:\n  - {baseline: one, against: [one], metric: nll}",
        ["spec.yaml:5:", "'one' is compared with itself", "drop it"],
    ),
    "comparison with the best of nobody": (
        "runs: {one: {}}\ncompare:\n  - baseline: one\n"
        "    against: [{best_of: 'ono*', metric: m, mode: min}]\n    metric: nll",
        ["spec.yaml:6:", "'best m (min) of ono*': no run is called so", "Runs: one"],
    ),
    "comparison with the best of cells that hold itself": (
        "runs: {a_1: {}, a_2: {steps: 9}}\ncompare:\n  - baseline: {best_of: 'a_*', metric: m, mode: min}\n"
        "    against: [a_2]\n    metric: nll",
        ["spec.yaml:6:", "'a_2' is compared with itself", "drop it"],
    ),
    "comparison of one cell with the best of two": (
        "runs: {a_1: {}, a_2: {steps: 9}, b: {steps: 8}}\ncompare:\n"
        "  - baseline: {best_of: 'a_*', metric: m, mode: min}\n    against: [b]\n    metric: nll",
        ["spec.yaml:6:", "'b' is chosen of 1, 'best m (min) of a_*' of 2", "let both choose among as many"],
    ),
    "comparison of the best by what chose them": (
        "runs: {a_1: {}, b_1: {steps: 8}}\ncompare:\n"
        "  - {baseline: {best_of: 'a_*', metric: m, mode: min}, against: [b_1], metric: m}",
        ["spec.yaml:5:", "'a_*' would be chosen by m and compared by m", "choose by validation"],
    ),
    "comparison of the best by the test text": (
        "runs: {a_1: {}, b_1: {steps: 8}}\ncompare:\n"
        "  - {baseline: a_1, against: [{best_of: 'b_*', metric: test_nll, mode: min}], metric: m}",
        ["spec.yaml:5:", "'b_*' would be chosen by test_nll", "choose by validation"],
    ),
    "comparison of the best by a metric that nobody measures": (
        "job: measured\nruns: {a_1: {}, b_1: {steps: 9}}\n"
        "compare:\n  - {baseline: {best_of: 'a_*', metric: los, mode: min}, against: [b_1], metric: score}",
        ["spec.yaml:5:", "'los' is no metric", "did you mean 'loss'", "It measures loss, score"],
    ),
    "comparison with a best without a mode": (
        "runs: {a_1: {}, b_1: {steps: 8}}\ncompare:\n"
        "  - {baseline: a_1, against: [b_1, {best_of: 'b_*', metric: m}], metric: nll}",
        ["spec.yaml:5:", "'mode' is missing", "min or max"],
    ),
    "comparison by a metric that nobody measures": (
        "job: measured\nruns: {one: {}, two: {steps: 9}}\n"
        "compare:\n  - {baseline: one, against: [two], metric: los}",
        ["spec.yaml:5:", "'los' is no metric", "did you mean 'loss'", "It measures loss, score"],
    ),
    "comparison by a metric of which neither side is better": (
        "runs: {one: {}, two: {steps: 9}}\n"
        "compare:\n  - {baseline: one, against: [two], metric: active_parameters}",
        [
            "spec.yaml:5:",
            "by 'active_parameters' nobody can win or lose",
            "Compare by a name that ends in accuracy",
        ],
    ),
    "early stopping by a metric that nobody measures": (
        "job: measured\nruns:\n  one: {early_stop.metric: skore}",
        ["spec.yaml:4:", "run 'one'", "'skore' is no metric", "did you mean 'score'"],
    ),
    "two names for one experiment": (
        "runs:\n  ablation_b: {steps: 4}\n  ablation_c: {steps: 4, step_s: 0.0}",
        [
            "spec.yaml:5:",
            "'ablation_b' and 'ablation_c'",
            "same effective config",
            "Drop one, or list more seeds",
        ],
    ),
    "reference without a mode": (
        "runs:\n  t_1: {}\n  best: {steps: {best_of: 't_*', metric: loss}}",
        ["spec.yaml:5:", "runs.best.steps: 'mode' is missing", "min or max"],
    ),
    "reference with another mode": (
        "runs:\n  t_1: {}\n  best: {steps: {best_of: 't_*', metric: loss, mode: mim}}",
        ["spec.yaml:5:", "runs.best.steps: 'mode' is 'mim' (text)", "'min' or 'max'", "did you mean 'min'"],
    ),
    "reference to nobody": (
        "runs:\n  temp_1: {}\n  best: {steps: {best_of: 'tmp_*', metric: loss, mode: min}}",
        [
            "spec.yaml:5:",
            "run 'best'",
            "'steps': best_of 'tmp_*' matches no other cell",
            "did you mean 'temp_1'",
        ],
    ),
    "reference to itself": (
        "runs:\n  t_1: {}\n  best: {steps: {best_of: 'b*', metric: loss, mode: min}}",
        ["spec.yaml:5:", "'steps': best_of 'b*' matches no other cell", "Cells: t_1, best"],
    ),
    "references in a circle": (
        "runs:\n  a: {steps: {best_of: b, metric: loss, mode: min}}\n"
        "  b: {steps: {best_of: a, metric: loss, mode: min}}",
        ["spec.yaml:4:", "'a' needs itself: a -> b -> a", "cut the circle"],
    ),
    "reference to a setting that a winner may lack": (
        "job: measured\nruns:\n  t_1: {early_stop: null}\n"
        "  best: {early_stop.patience: {best_of: t_1, metric: loss, mode: min}}",
        [
            "spec.yaml:5:",
            "'early_stop.patience'",
            "'t_1', which may win, has no such setting",
            "set it there",
        ],
    ),
    "reference by a metric that nobody measures": (
        "job: measured\nruns:\n  t_1: {steps: 4}\n  best: {steps: {best_of: t_1, metric: lost, mode: min}}",
        ["spec.yaml:5:", "'lost' is no metric", "did you mean 'loss'"],
    ),
    "value of a possible winner that breaks a rule": (
        "job: measured\nruns:\n  t_1: {steps: 4}\n  t_2: {steps: 50}\n"
        "  best: {limit: 10, steps: {best_of: 't_*', metric: loss, mode: min}}",
        ["spec.yaml:6:", "run 'best'", "steps is 50; the limit is 10 (where t_2 is best)"],
    ),
    "resources that wait for a result": (
        "runs:\n  t_1: {}\n  best: {resources.nodes: {best_of: t_1, metric: loss, mode: min}}",
        ["spec.yaml:5:", "resources cannot wait for a result", "write a number"],
    ),
    "unknown cause of a retry": (
        "retry: {timout: 3}",
        ["spec.yaml:3:", "'retry.timout'", "did you mean 'timeout'"],
    ),
    "negative retry": (
        "retry:\n  oom: -1",
        ["spec.yaml:4:", "'retry.oom' is -1", "greater than or equal to 0"],
    ),
    "budget of nothing": (
        "budget_gpu_hours: 0",
        ["spec.yaml:3:", "'budget_gpu_hours' is 0", "greater than 0"],
    ),
    "unknown job": (
        "job: coumt",
        ["spec.yaml:2:", "no jobs/coumt.py", "did you mean 'count'", "Jobs: count"],
    ),
    "unknown base": ("base: plane", ["spec.yaml:3:", "no base configs/plane.yaml", "did you mean 'plain'"]),
    "no YAML": (
        "runs: {a: [1",
        ["spec.yaml:4:", "not valid YAML", "',' or ']'", "flow sequence from line 3 on"],
    ),
    "tag": (
        "seeds: !!python/object:os.system [1]",
        ["spec.yaml:3:", "the tag", "is not allowed", "plain value"],
    ),
    "run named like a folder of the launch": (
        "runs:\n  cache: {}",
        ["spec.yaml:4:", "may not be called 'cache'", "launch folders have cache"],
    ),
    "run that leads elsewhere": (
        "runs:\n  ../evil: {}",
        ["spec.yaml:4:", "'../evil'", "takes letters, digits"],
    ),
}

MEASURED_JOB = '''
"""Says what it measures."""
from pydantic import model_validator

from latentbridge.config import Config as Settings, JobConfig


class Stop(Settings):
    metric: str = "loss"
    patience: int | None = None


class Config(JobConfig):
    steps: int = 3
    limit: int | None = None
    early_stop: Stop | None = Stop()

    def metric_names(self):
        return "loss", "score"

    @model_validator(mode="after")
    def _steps_stay_below_the_limit(self):
        if self.limit is not None and self.steps > self.limit:
            raise ValueError(f"steps is {self.steps}; the limit is {self.limit}")
        return self
'''


@pytest.fixture
def calls(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that every SLURM command writes its name into; the profile `far` is a SLURM one."""
    log, tools = tmp_path / "calls", tmp_path / "tools"
    tools.mkdir()
    log.touch()
    for tool in TOOLS:
        (tools / tool).write_text(f'#!/bin/sh\necho {tool} >> "{log}"\nexit 1\n')
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (project / "slurm" / "far.yaml").write_text("executor: slurm\n")
    (project / "jobs" / "measured.py").write_text(MEASURED_JOB)
    (project / "configs" / "plain.yaml").write_text("steps: 3\n")
    return log


def launch(project: Path, text: str) -> int:
    (project / "configs" / "spec.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "spec", "--cluster", "far"])
    return ended.value.code


def test_there_are_thirty_mistakes_and_more():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_stops_with_place_key_rule_and_remedy_before_any_scheduler_call(
    mistake, calls, project, capsys
):
    text, parts = MISTAKES[mistake]
    job = "" if text.startswith("job:") else "job: count\n"

    assert launch(project, f"name: s\n{job}{text}\n") == 2

    (line,) = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in line
    assert line.startswith("configs/")
    assert calls.read_text() == ""
    assert not (project / "runs").exists()


def test_a_sound_spec_does_ask_the_scheduler(calls, project):
    launch(project, "name: s\njob: count\n")

    assert calls.read_text()
