"""What a person types, and what answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from folders import end, planned_launch

from latentbridge.launch.cli import main
from latentbridge.rundir import RunDir

REPOSITORY = Path(__file__).parents[2]


def run(*argv):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    return ended.value.code


@pytest.mark.parametrize(
    "command",
    [(), ("launch",), ("status",), ("preserve",), ("verify",), ("restore",), ("schema",), ("import",)],
)
def test_every_command_answers_help(command, capsys):
    assert run(*command, "--help") == 0
    assert "usage:" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_shows_the_exact_lines(write_spec, project, capsys):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}, b: {steps: 7}}")
    before = sorted(project.rglob("*"))

    assert run("launch", "spec", "--dry-run") == 0

    out = capsys.readouterr().out
    assert out.count("-m torch.distributed.run") == 2
    assert sorted(project.rglob("*")) == before


def test_a_mistake_is_an_exit_code_of_2_and_makes_nothing(write_spec, project, capsys):
    write_spec("name: s\njob: count\nruns:\n  a: {stebs: 7}")

    assert run("launch", "spec", "--cluster", "local") == 2
    assert "configs/spec.yaml:4: run 'a': unknown key 'stebs'" in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_a_folder_that_is_no_launch_is_refused(tmp_path, capsys):
    assert run("status", tmp_path) == 2
    assert "not a launch folder" in capsys.readouterr().err


def test_status_as_json_lists_every_run(write_spec, project, capsys):
    write_spec("name: s\njob: count\ncluster: local\nseeds: [4, 5, 6]")
    assert run("launch", "spec", "--no-submit") == 0
    (folder,) = project.glob("runs/s_*")
    capsys.readouterr()

    assert run("status", folder, "--json") == 0

    told = json.loads(capsys.readouterr().out)
    assert told["version"] == 1
    assert told["phases"] == {"planned": 3}
    assert [(run["name"], run["phase"]) for run in told["runs"]] == [
        ("s-s4", "planned"),
        ("s-s5", "planned"),
        ("s-s6", "planned"),
    ]


def test_a_message_with_brackets_is_shown_as_it_is(write_spec, project, capsys):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}}")
    assert run("launch", "spec", "--no-submit") == 0
    (folder,) = project.glob("runs/s_*")
    RunDir(folder / "a").mark("FAILED", {"cause": "error", "message": "no [/scratch/x] and [bold]"})
    capsys.readouterr()

    assert run("status", folder) == 1

    assert "[/scratch/x]" in capsys.readouterr().out


def test_rules_of_the_spec_and_of_the_command_say_what_an_archive_keeps(write_spec, project, capsys):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}}\npreserve: {leave_out: [packages.txt]}")
    launch = planned_launch(project)
    end(launch.run("a"), "done")
    archive = project / "preserved_data" / launch.name

    assert run("preserve", launch.path) == 0
    assert not (archive / "packages.txt").exists()
    assert run("preserve", launch.path, "--compress", "packages.txt") == 0
    assert (archive / "packages.txt.gz").exists()
    assert run("preserve", launch.path, "--compress", "package.txt") != 0
    assert "no file matches 'package.txt'; nothing was archived" in capsys.readouterr().err
    assert run("verify", archive) == 0


def test_a_rule_that_says_nothing_possible_is_refused_with_its_line(write_spec, project, capsys):
    write_spec("name: s\njob: count\nruns: {a: {}}\npreserve:\n  checkpoints: newest")

    assert run("launch", "spec", "--cluster", "local") == 2
    assert "configs/spec.yaml:5: 'preserve.checkpoints' is 'newest'" in capsys.readouterr().err


def test_bases_that_go_in_a_circle_are_refused(write_spec, project, capsys):
    write_spec("base: two", name="one")
    write_spec("base: one", name="two")
    write_spec("name: s\njob: count\nbase: one")

    assert run("launch", "spec", "--cluster", "local") == 2
    assert "bases in a circle: one -> two -> one" in capsys.readouterr().err


def test_a_slurm_profile_without_slurm_is_refused_before_anything_is_made(
    write_spec, project, monkeypatch, capsys
):
    write_spec("name: s\njob: count\nruns: {a: {}}")
    (project / "slurm" / "far.yaml").write_text("executor: slurm\n")
    monkeypatch.setenv("PATH", "/nonexistent")

    assert run("launch", "spec", "--cluster", "far") == 2
    assert "needs sbatch, squeue, scontrol" in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_the_schema_of_a_spec_names_its_keys(capsys):
    assert run("schema") == 0
    assert {"runs", "grid", "seeds"} <= set(json.loads(capsys.readouterr().out)["properties"])


def test_the_login_node_never_imports_torch_or_pandas():
    script = (
        "import sys\nfrom latentbridge.launch import cli\n"
        "try: cli.main(['launch', 'ablations', '--dry-run', '--cluster', 'h100'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'deepspeed', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
