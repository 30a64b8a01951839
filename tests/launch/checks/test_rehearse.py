"""A launch is rehearsed before it is made, and refused where that fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentbridge.errors import PreflightError
from latentbridge.launch.checks import rehearse as module
from latentbridge.launch.checks.rehearse import MOST, can_rehearse, rehearse
from latentbridge.launch.plan import Plan, make_plan
from latentbridge.rundir import read_json

REPOSITORY = Path(__file__).parents[3]
SPEC = "name: s\njob: translator\nbase: translator/smoke\ncluster: local\n"


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "launch.py"), "spec", "--no-submit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def verdict(check: str, runs: list[str], ok: bool, text: str) -> dict[str, Any]:
    return {"check": check, "runs": runs, "ok": ok, "text": text}


@pytest.fixture(autouse=True)
def translators(project: Path) -> None:
    """The project has the translator's job and bases too."""
    shutil.copy(REPOSITORY / "jobs/translator.py", project / "jobs")
    shutil.copytree(REPOSITORY / "configs/translator", project / "configs/translator")


@pytest.fixture
def plan(write_spec, project: Path) -> Plan:
    write_spec(f"{SPEC}seeds: [1, 2]\nruns: {{a: {{}}, b: {{swap: [source, target], model.soft_tokens: 3}}}}")
    return make_plan("spec", cluster=None, settings=[], root=project)


@pytest.fixture
def answer(monkeypatch) -> list[dict[str, Any]]:
    """What the rehearsal's process would report; asked requests are added behind it."""
    said: list[dict[str, Any]] = [{"verdicts": [], "seconds": 1.5}]

    def conducted(request: dict[str, Any], _: Any) -> dict[str, Any]:
        said.append(request)
        return said[0]

    monkeypatch.setattr(module, "_conducted", conducted)
    return said


def test_a_job_without_a_rehearsal_has_none(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 4}}")

    assert not can_rehearse(make_plan("spec", cluster=None, settings=[], root=project))


def test_each_cell_is_asked_for_once_with_its_overrides(plan, answer):
    assert can_rehearse(plan)
    rehearse(plan, [], print)

    first, second = answer[1]["cells"]
    assert first["runs"] == ["a-s1", "a-s2"]
    assert (second["overrides"], second["swap"]) == (["model.soft_tokens"], ["source", "target"])
    assert answer[1]["base"]["model"]["soft_tokens"] == 4


def test_what_fails_is_told_with_its_runs_and_the_way_around_it(plan, answer):
    answer[0]["verdicts"] = [
        verdict("gradients", ["a-s1", "a-s2"], False, "losses.flow sends no gradient"),
        verdict("labels", ["a-s1", "a-s2"], True, "4 tokens"),
        verdict("ablation", ["b-s1", "b-s2"], False, "swap changes nothing"),
    ]

    with pytest.raises(PreflightError) as refused:
        rehearse(plan, [], print)
    assert str(refused.value).splitlines() == [
        "a-s1 (and 1 more): rehearsal 'gradients': losses.flow sends no gradient",
        "b-s1 (and 1 more): rehearsal 'ablation': swap changes nothing",
        "Nothing was submitted. Mend it, or launch it all the same, and have that written down: "
        "--no-check ablation --no-check gradients",
    ]


def test_a_rehearsal_takes_one_thread_and_no_gpu(plan, monkeypatch):
    """Where others use the cores too, two threads took 205 s and one takes 25: they wait for each other."""

    def asked(command: list[str], *, env: dict[str, str], **_: Any) -> None:
        raise PreflightError(f"{env['OMP_NUM_THREADS']} {env['CUDA_VISIBLE_DEVICES']!r}")

    monkeypatch.setattr(module.subprocess, "Popen", asked)
    with pytest.raises(PreflightError, match=r"^1 ''$"):
        rehearse(plan, [], print)


def test_a_rehearsal_looks_for_files_where_its_launch_is_made(plan, monkeypatch):
    """A text named from there was no file for the rehearsal, which had a folder of its own."""

    def asked(command: list[str], *, cwd: Path | None = None, **_: Any) -> None:
        raise PreflightError(f"in {cwd or Path.cwd()}")

    monkeypatch.setattr(module.subprocess, "Popen", asked)
    with pytest.raises(PreflightError, match=rf"^in {Path.cwd()}$"):
        rehearse(plan, [], print)


def test_the_same_plan_is_rehearsed_once_and_again_after_a_failure(plan, answer):
    rehearse(plan, [], print)
    assert rehearse(plan, [], print).seconds is None
    assert len(answer) == 1 + 1
    # other checks, another rehearsal
    answer[0]["verdicts"] = [verdict("labels", ["a-s1"], False, "shifted twice")]
    for _ in range(2):
        with pytest.raises(PreflightError):
            rehearse(plan, ["gradients"], print)
    assert len(answer) == 1 + 1 + 2


def test_of_a_large_grid_a_part_is_rehearsed_its_first_cell_among_it(write_spec, project, answer):
    write_spec(f"{SPEC}runs: {{a: {{}}}}\ngrid: {{model.soft_tokens: {list(range(1, 2 * MOST + 2))}}}")
    report = rehearse(make_plan("spec", cluster=None, settings=[], root=project), [], print)

    runs = [cell["runs"][0] for cell in answer[1]["cells"]]
    assert (len(runs), len(set(runs)), runs[0]) == (MOST, MOST, "a_soft_tokens=1")
    assert report.as_record("never")["not_rehearsed"] == "24 of 49 cells were"


def test_a_real_launch_is_rehearsed_and_its_manifest_says_what_was_shown(write_spec, project):
    write_spec(f"{SPEC}runs: {{a: {{}}, b: {{optim.gate_lr_multiplier: 1.0}}}}")

    made = launch()
    assert made.returncode == 0, made.stderr
    assert "rehearsal on tiny models" in made.stdout
    (manifest,) = project.glob("runs/s_*/b/manifest.json")
    record = read_json(manifest)["rehearsal"]
    assert record["off"] == []
    assert record["checks"]["ablation"] == "1 overrides, each with an effect"


def test_a_real_launch_of_an_idle_override_is_refused_and_can_be_forced(write_spec, project):
    write_spec(f"{SPEC}runs: {{a: {{losses.info_nce.weight: 0.0, losses.info_nce.temperature: 0.5}}}}\n")

    refused = launch()
    assert refused.returncode == 2
    assert (
        "a: rehearsal 'ablation': losses.info_nce.temperature changes nothing in this run" in refused.stderr
    )
    assert not list(project.glob("runs/s_*"))
    forced = launch("--no-check", "ablation")
    assert forced.returncode == 0, forced.stderr
    (manifest,) = project.glob("runs/s_*/a/manifest.json")
    assert read_json(manifest)["rehearsal"]["off"] == ["ablation"]


def test_checks_cannot_be_left_out_of_runs_that_exist(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 4}}")
    assert launch("--no-check", "first_minute").returncode == 0

    again = launch("--no-check", "first_minute")
    assert again.returncode == 2
    assert "--no-check: these runs exist already" in again.stderr
    (manifest,) = project.glob("runs/s_*/a/manifest.json")
    assert read_json(manifest)["rehearsal"] == {"checks": {}, "off": ["first_minute"]}


def test_a_check_that_does_not_exist_cannot_be_left_out_and_nothing_is_made(write_spec, project):
    write_spec(f"{SPEC}runs: {{a: {{}}}}")

    refused = launch("--no-check", "gradient")
    assert refused.returncode == 2
    assert refused.stderr.startswith("--no-check gradient: there is no such check; checks: phases, gradients")
    assert not list(project.glob("runs/s_*"))
