"""Forty specs, and for each exactly the runs that it stands for, with ids worked out from the definition."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy

# what jobs/count.py computes where nobody says otherwise
DEFAULTS = {
    "seed": 1234,
    "steps": 3,
    "step_s": 0.0,
    "fail_at": None,
    "fail_times": 1,
    "fail_rank": None,
    "source": {"model": "a"},
    "target": {"model": "b"},
}
BASES = {
    "half": "steps: 8\nsource: {model: big}\n",
    "quarter": "base: half\nstep_s: 0.25\nsource.model: small\n",
    "chooser": "steps: {best_of: 'c_*', metric: loss, mode: min}\n",
}

# a spec, and for every run, in order, what it computes differently from DEFAULTS
GOLDEN = {
    "a spec that says nothing": ("", {"s": {}}),
    "seeds alone": ("seeds: [1, 2]", {"s-s1": {"seed": 1}, "s-s2": {"seed": 2}}),
    "one run": ("runs: {one: {}}", {"one": {}}),
    "named runs": (
        "runs: {one: {steps: 4}, two: {steps: 5, step_s: 0.5}}",
        {"one": {"steps": 4}, "two": {"steps": 5, "step_s": 0.5}},
    ),
    "a dotted key": ("runs: {one: {source.model: x}}", {"one": {"source.model": "x"}}),
    "a nested mapping": ("runs: {one: {source: {model: x}}}", {"one": {"source.model": "x"}}),
    "two ways in one run": (
        "runs: {one: {source: {model: x}, target.model: y}}",
        {"one": {"source.model": "x", "target.model": "y"}},
    ),
    "an empty mapping": ("runs: {one: {source: {}, steps: 4}}", {"one": {"steps": 4}}),
    "null": ("runs: {one: {fail_at: null, steps: 4}}", {"one": {"steps": 4}}),
    "a base": ("base: half", {"s": {"steps": 8, "source.model": "big"}}),
    "a base with a base": ("base: quarter", {"s": {"steps": 8, "step_s": 0.25, "source.model": "small"}}),
    "runs on a base": (
        "base: half\nruns: {one: {steps: 9}, two: {}}",
        {"one": {"steps": 9, "source.model": "big"}, "two": {"steps": 8, "source.model": "big"}},
    ),
    "runs and seeds": (
        "seeds: [7, 3]\nruns: {one: {}, two: {steps: 4}}",
        {
            "one-s7": {"seed": 7},
            "one-s3": {"seed": 3},
            "two-s7": {"seed": 7, "steps": 4},
            "two-s3": {"seed": 3, "steps": 4},
        },
    ),
    "a grid": ("grid: {steps: [4, 6]}", {"steps=4": {"steps": 4}, "steps=6": {"steps": 6}}),
    "a grid of two": (
        "grid: {steps: [4, 6], step_s: [0.1, 0.2]}",
        {
            "steps=4_step_s=0.1": {"steps": 4, "step_s": 0.1},
            "steps=4_step_s=0.2": {"steps": 4, "step_s": 0.2},
            "steps=6_step_s=0.1": {"steps": 6, "step_s": 0.1},
            "steps=6_step_s=0.2": {"steps": 6, "step_s": 0.2},
        },
    ),
    "a grid with one value each": (
        "grid: {steps: [4], step_s: [0.1], fail_times: [2]}",
        {"steps=4_step_s=0.1_fail_times=2": {"steps": 4, "step_s": 0.1, "fail_times": 2}},
    ),
    "a grid over a nested key": (
        "grid: {source.model: [x, y]}",
        {"model=x": {"source.model": "x"}, "model=y": {"source.model": "y"}},
    ),
    "a grid over paths": (
        'grid: {source.model: ["org/name", "a b"]}',
        {"model=org-name": {"source.model": "org/name"}, "model=a-b": {"source.model": "a b"}},
    ),
    "a grid with null": ("grid: {fail_at: [null, 2]}", {"fail_at=None": {}, "fail_at=2": {"fail_at": 2}}),
    "a grid over mappings": (
        "grid: {source: [{model: x}, {model: y}]}",
        {"source=model-x": {"source.model": "x"}, "source=model-y": {"source.model": "y"}},
    ),
    "a grid over the seed": ("grid: {seed: [5, 6]}", {"seed=5": {"seed": 5}, "seed=6": {"seed": 6}}),
    "numbers in other spellings": (
        "grid: {step_s: [1e-2, .5, 1]}",
        {"step_s=0.01": {"step_s": 0.01}, "step_s=0.5": {"step_s": 0.5}, "step_s=1": {"step_s": 1.0}},
    ),
    "a zip": (
        "zip: {steps: [4, 6], step_s: [0.1, 0.2]}",
        {
            "steps=4_step_s=0.1": {"steps": 4, "step_s": 0.1},
            "steps=6_step_s=0.2": {"steps": 6, "step_s": 0.2},
        },
    ),
    "a grid and a zip": (
        "grid: {fail_times: [2, 5]}\nzip: {steps: [4, 6], step_s: [0.1, 0.2]}",
        {
            "fail_times=2_steps=4_step_s=0.1": {"fail_times": 2, "steps": 4, "step_s": 0.1},
            "fail_times=2_steps=6_step_s=0.2": {"fail_times": 2, "steps": 6, "step_s": 0.2},
            "fail_times=5_steps=4_step_s=0.1": {"fail_times": 5, "steps": 4, "step_s": 0.1},
            "fail_times=5_steps=6_step_s=0.2": {"fail_times": 5, "steps": 6, "step_s": 0.2},
        },
    ),
    "runs and a grid": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\ngrid: {steps: [4, 6]}",
        {
            "plain_steps=4": {"steps": 4},
            "plain_steps=6": {"steps": 6},
            "slow_steps=4": {"steps": 4, "step_s": 0.5},
            "slow_steps=6": {"steps": 6, "step_s": 0.5},
        },
    ),
    "runs and a zip": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\nzip: {steps: [4], fail_times: [2]}",
        {
            "plain_steps=4_fail_times=2": {"steps": 4, "fail_times": 2},
            "slow_steps=4_fail_times=2": {"steps": 4, "fail_times": 2, "step_s": 0.5},
        },
    ),
    "runs, a grid, a zip and seeds": (
        "seeds: [2]\nruns: {one: {fail_rank: 0}}\ngrid: {steps: [4]}\nzip: {step_s: [0.1, 0.2]}",
        {
            "one_steps=4_step_s=0.1-s2": {"seed": 2, "fail_rank": 0, "steps": 4, "step_s": 0.1},
            "one_steps=4_step_s=0.2-s2": {"seed": 2, "fail_rank": 0, "steps": 4, "step_s": 0.2},
        },
    ),
    "an exclude rule": (
        "grid: {steps: [4, 6, 9]}\nexclude: [{steps: 6}]",
        {"steps=4": {"steps": 4}, "steps=9": {"steps": 9}},
    ),
    "an exclude rule with two keys": (
        "grid: {steps: [4, 6], step_s: [0.1, 0.2]}\nexclude: [{step_s: 0.2, steps: 4}]",
        {
            "steps=4_step_s=0.1": {"steps": 4, "step_s": 0.1},
            "steps=6_step_s=0.1": {"steps": 6, "step_s": 0.1},
            "steps=6_step_s=0.2": {"steps": 6, "step_s": 0.2},
        },
    ),
    "two exclude rules": (
        "grid: {steps: [4, 6], step_s: [0.1, 0.2]}\nexclude: [{steps: 4}, {step_s: 0.2}]",
        {"steps=6_step_s=0.1": {"steps": 6, "step_s": 0.1}},
    ),
    "an exclude rule that meets a run's own setting": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\ngrid: {steps: [4, 6]}\nexclude: [{step_s: 0.5, steps: 6}]",
        {
            "plain_steps=4": {"steps": 4},
            "plain_steps=6": {"steps": 6},
            "slow_steps=4": {"steps": 4, "step_s": 0.5},
        },
    ),
    "an exclude rule written as a mapping": (
        "grid: {source.model: [x, y]}\nexclude: [{source: {model: x}}]",
        {"model=y": {"source.model": "y"}},
    ),
    "an include beside a grid": (
        "grid: {steps: [4]}\ninclude: [{steps: 9, step_s: 0.5}]",
        {"steps=4": {"steps": 4}, "steps=9_step_s=0.5": {"steps": 9, "step_s": 0.5}},
    ),
    "a named include": (
        "grid: {steps: [4]}\ninclude: [{name: long, steps: 900}]",
        {"steps=4": {"steps": 4}, "long": {"steps": 900}},
    ),
    "an include for every run": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\ninclude: [{name: long, steps: 900}]",
        {
            "plain": {},
            "plain_long": {"steps": 900},
            "slow": {"step_s": 0.5},
            "slow_long": {"steps": 900, "step_s": 0.5},
        },
    ),
    "an include that a rule would exclude": (
        "grid: {steps: [4, 6]}\nexclude: [{steps: 6}]\ninclude: [{steps: 6, step_s: 0.5}]",
        {"steps=4": {"steps": 4}, "steps=6_step_s=0.5": {"steps": 6, "step_s": 0.5}},
    ),
    "includes alone, with seeds": (
        "seeds: [8]\ninclude: [{steps: 4}, {name: x, source: {model: x}}]",
        {"steps=4-s8": {"seed": 8, "steps": 4}, "x-s8": {"seed": 8, "source.model": "x"}},
    ),
    "swap": (
        "base: half\nruns: {there: {}, back: {swap: [source, target], target.model: t}}",
        {
            "there": {"steps": 8, "source.model": "big"},
            # the settings are merged first, then exchanged
            "back": {"steps": 8, "source.model": "t", "target.model": "big"},
        },
    ),
    "swap and a grid": (
        "base: quarter\nruns: {back: {swap: [source, target], target: {model: c}}}\n"
        "grid: {source.model: [x, y]}",
        {
            "back_model=x": {"steps": 8, "step_s": 0.25, "source.model": "c", "target.model": "x"},
            "back_model=y": {"steps": 8, "step_s": 0.25, "source.model": "c", "target.model": "y"},
        },
    ),
    "resources are no setting": (
        "resources: {nodes: 2}\nruns: {one: {resources.nodes: 3}, two: {steps: 4, resources: {nodes: 4}}}",
        {"one": {}, "two": {"steps": 4}},
    ),
    "needs change no id": (
        "seeds: [1, 2]\nruns: {one: {}, two: {steps: 4}}\nneeds: {two: [one]}",
        {
            "one-s1": {"seed": 1},
            "one-s2": {"seed": 2},
            "two-s1": {"seed": 1, "steps": 4},
            "two-s2": {"seed": 2, "steps": 4},
        },
    ),
    "a reference": (
        "runs: {c_1: {steps: 4}, c_2: {steps: 6}, best: {steps: {best_of: 'c_*', metric: loss, mode: min}}}",
        {"c_1": {"steps": 4}, "c_2": {"steps": 6}, "best": {"steps": ("c_1", "c_2")}},
    ),
    "a reference over seeds": (
        "seeds: [1, 2]\nruns: {c_1: {steps: 4}, best: {steps: {best_of: c_1, metric: loss, mode: min}}}",
        {
            "c_1-s1": {"seed": 1, "steps": 4},
            "c_1-s2": {"seed": 2, "steps": 4},
            "best-s1": {"seed": 1, "steps": ("c_1-s1", "c_1-s2")},
            "best-s2": {"seed": 2, "steps": ("c_1-s1", "c_1-s2")},
        },
    ),
    "a reference before its cells, and inside a mapping": (
        "runs: {best: {source: {model: {best_of: 'c_*', metric: loss, mode: min}}}, c_1: {source.model: x}}",
        {"best": {"source.model": ("c_1",)}, "c_1": {"source.model": "x"}},
    ),
    "a reference of a base": (
        "base: chooser\nruns: {c_1: {steps: 4}, c_2: {steps: 6}, best: {}, slow: {step_s: 0.5}}",
        {
            "c_1": {"steps": 4},
            "c_2": {"steps": 6},
            "best": {"steps": ("c_1", "c_2")},
            "slow": {"steps": ("c_1", "c_2"), "step_s": 0.5},
        },
    ),
    "a reference in a grid": (
        "grid: {steps: [4, {best_of: 'steps=4', metric: loss, mode: min}]}",
        {"steps=4": {"steps": 4}, "steps=best_of-steps-4": {"steps": ("steps=4",)}},
    ),
    "a reference in an include, by a pattern that fits itself": (
        "grid: {steps: [4]}\ninclude: [{name: best, steps: {best_of: '*', metric: loss, mode: min}}]",
        {"steps=4": {"steps": 4}, "best": {"steps": ("steps=4",)}},
    ),
    "a reference to cells that refer": (
        "runs:\n"
        "  c_1: {steps: 4}\n"
        "  c_2: {steps: 6}\n"
        "  d_1: {steps: {best_of: 'c_*', metric: loss, mode: min}, step_s: 0.1}\n"
        "  d_2: {steps: {best_of: 'c_*', metric: loss, mode: min}, step_s: 0.2}\n"
        "  last:\n"
        "    steps: {best_of: 'd_*', metric: loss, mode: min}\n"
        "    step_s: {best_of: 'd_*', metric: loss, mode: min}\n",
        {
            "c_1": {"steps": 4},
            "c_2": {"steps": 6},
            "d_1": {"steps": ("c_1", "c_2"), "step_s": 0.1},
            "d_2": {"steps": ("c_1", "c_2"), "step_s": 0.2},
            "last": {"steps": ("d_1", "d_2"), "step_s": ("d_1", "d_2")},
        },
    ),
}


def identify(golden: dict[str, dict]) -> dict[str, str]:
    """Every run's id, worked out from the definition: the hash of all that it computes."""
    ids: dict[str, str] = {}

    def id_of(name: str) -> str:
        if name not in ids:
            config = deepcopy(DEFAULTS)
            for key, value in golden[name].items():
                *way, last = key.split(".")
                place = config
                for part in way:
                    place = place[part]
                if isinstance(value, tuple):
                    value = {"best_of": sorted(map(id_of, value)), "metric": "loss", "mode": "min"}
                place[last] = value
            text = json.dumps({"job": "count", "config": config}, sort_keys=True, separators=(",", ":"))
            ids[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return ids[name]

    return {name: id_of(name) for name in golden}


def spec_text(case: str) -> str:
    return f"name: s\njob: count\n{GOLDEN[case][0]}\n"
