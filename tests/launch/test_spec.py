"""What a spec may say, how it is found, and what editors are told about it."""

from __future__ import annotations

import json

import pytest

from latentbridge.config import Origin, dump
from latentbridge.errors import ConfigError
from latentbridge.launch.cells.best_of import Reference
from latentbridge.launch.cli import main
from latentbridge.launch.spec import Retry, find_spec, load_job_config, parse_settings, read_base, read_draft

HERE = Origin("spec.yaml", 3)


def test_a_spec_is_found_by_path_and_by_name(write_spec, project):
    path = write_spec("name: s\njob: count")

    assert find_spec(str(path), project) == path
    assert find_spec("spec", project) == path
    assert find_spec("spec.yaml", project) == path
    with pytest.raises(ConfigError, match=r"no spec 'spek'; did you mean 'spec'\? Looked for spek, "):
        find_spec("spek", project)


def test_retries_count_as_the_design_says_where_nobody_else_does():
    assert dump(Retry()) == {
        "preempted": None,
        "timeout": 10,
        "node_fail": 5,
        "killed": 3,
        "oom": 2,
        "hang": 2,
        "error": 3,
        "deterministic": 1,
        "no_progress": 3,
    }


def test_unlimited_null_and_zero_are_told_apart(write_spec, project):
    path = write_spec("name: s\njob: count\nretry: {timeout: unlimited, oom: null, hang: 0}")

    retry = read_draft(path, project)[0].retry

    assert (retry.timeout, retry.oom, retry.hang) == (None, None, 0)
    assert Retry.model_validate(dump(retry)) == retry


def test_budget_and_hang_limit_have_their_defaults_and_can_be_lifted(write_spec, project):
    plain, *_ = read_draft(write_spec("name: s\njob: count"), project)
    asked, *_ = read_draft(
        write_spec("name: s\njob: count\nbudget_gpu_hours: 200\nhang_timeout_min: null"), project
    )

    assert (plain.budget_gpu_hours, plain.hang_timeout_min) == (None, 30)
    assert (asked.budget_gpu_hours, asked.hang_timeout_min) == (200, None)


def test_a_reference_is_one_value_wherever_a_value_may_stand(write_spec, project):
    written = "{best_of: 'a*', metric: loss, mode: max}"
    write_spec(f"steps: {written}", name="low")
    spec, *_ = read_draft(
        write_spec(
            f"name: s\njob: count\nruns: {{x: {{source: {{model: {written}}}}}}}\n"
            f"grid: {{steps: [1, {written}]}}\ninclude: [{{steps: {written}}}]"
        ),
        project,
    )
    reference = Reference(best_of="a*", metric="loss", mode="max")

    assert spec.runs == {"x": {"source": {"model": reference}}}
    assert spec.grid == {"steps": [1, reference]}
    assert spec.include == [{"steps": reference}]
    assert read_base("low", project, HERE).values == {"steps": reference}
    assert parse_settings([f"steps={written}"]).values == {"steps": reference}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("steps", "--set steps: write key=value"),
        ("steps=[1", r"--set steps=\[1: '\[1' is not a YAML value"),
        ("steps={best_of: a}", r"--set steps=\{best_of: a\}: steps: 'metric' is missing"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named(setting, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_settings([setting])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def broken(", "SyntaxError: '\\(' was never closed"),
        ("x = 1", "it must define Config, a subclass of latentbridge.config.JobConfig"),
    ],
)
def test_a_job_that_cannot_be_imported_is_the_job_s_mistake(source, complaint, project):
    (project / "jobs" / "broken_job.py").write_text(source)

    with pytest.raises(ConfigError, match=f"jobs/broken_job.py: .*{complaint}"):
        load_job_config("broken_job", project, HERE)


def test_the_schema_tells_an_editor_which_keys_there_are_and_what_they_mean(capsys):
    with pytest.raises(SystemExit):
        main(["schema"])
    schema = json.loads(capsys.readouterr().out)

    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "job"]
    keys = schema["properties"]
    assert {"include", "budget_gpu_hours", "hang_timeout_min", "zip"} <= set(keys)
    assert all("description" in key or "$ref" in key for key in keys.values())
    assert {"const": "unlimited", "type": "string"} in schema["$defs"]["Retry"]["properties"]["oom"]["anyOf"]


def test_the_schema_knows_references_and_takes_any_other_value(capsys):
    with pytest.raises(SystemExit):
        main(["schema"])
    schema = json.loads(capsys.readouterr().out)

    value = schema["properties"]["runs"]["additionalProperties"]["additionalProperties"]
    reference, other = value["anyOf"]
    assert reference["required"] == ["best_of", "metric", "mode"]
    assert reference["properties"]["mode"]["enum"] == ["min", "max"]
    assert reference["additionalProperties"] is False
    # a mapping with best_of must be a whole reference; everything else may be anything
    assert other == {"not": {"type": "object", "required": ["best_of"]}}
    assert schema["properties"]["grid"]["additionalProperties"]["items"] == value
    assert schema["properties"]["include"]["items"]["additionalProperties"] == value


def test_a_tracker_that_is_not_installed_is_refused_with_line_and_remedy(write_spec, project, monkeypatch):
    monkeypatch.setattr("latentbridge.trackers.find_spec", lambda name: None)
    path = write_spec("name: s\njob: count\ntrackers: [tensorboard]")

    _, _, (complaint,) = read_draft(path, project)
    assert str(complaint.origin) == "configs/spec.yaml:3"
    assert complaint.text == (
        "trackers: 'tensorboard' is not installed here; pip install -e '.[tensorboard]', or leave it out"
    )
