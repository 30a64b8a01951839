"""A launch folder: complete or absent, and holding everything that made its results."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata

import pytest
from folders import planned_launch

from latentbridge.errors import ConfigError
from latentbridge.launch import plan as plan_module
from latentbridge.launch.plan import copy_code, find_launch, make_plan, refresh, sweep_drafts, write_launch
from latentbridge.launch.record import Launch, find_target
from latentbridge.rundir import read_json, write_json

SPEC = "name: s\njob: count\ncluster: local\nbudget_gpu_hours: 2.5\nseeds: [4, 5]\nruns: {a: {steps: 4}}"


@pytest.fixture
def plan(project, write_spec):
    write_spec(SPEC)
    return make_plan("spec", cluster=None, settings=[], root=project)


def git(root, *words):
    author = ["-c", "user.name=x", "-c", "user.email=x@y"]
    return subprocess.run(
        ["git", "-C", str(root), *author, *words], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def repository(tmp_path):
    """A committed project with one edited file, one new one, and a submodule under jobs/."""
    library, root = tmp_path / "library", tmp_path / "root"
    for folder in (library, root):
        folder.mkdir()
        git(folder, "init", "-q")
    (library / "helper.py").write_text("HELP = 1\n")
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    for top in ("latentbridge", "jobs"):
        (root / top).mkdir()
    (root / "jobs" / "count.py").write_text("STEPS = 1\n")
    git(root, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "jobs/library")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    (root / "jobs" / "count.py").write_text("STEPS = 2\n")
    (root / "latentbridge" / "new.py").write_text("NEW = 1\n")
    return root


def test_the_code_copy_holds_edits_untracked_files_and_submodules_and_says_what_differs(repository, tmp_path):
    code = copy_code(repository, tmp_path / "copy")

    copy = tmp_path / "copy"
    assert (copy / "jobs" / "count.py").read_text() == "STEPS = 2\n"
    assert (copy / "latentbridge" / "new.py").exists()
    assert (copy / "jobs" / "library" / "helper.py").read_text() == "HELP = 1\n"
    assert code["sha"] == git(repository, "rev-parse", "HEAD").strip()
    assert code["dirty"] is True
    assert "+STEPS = 2" in (copy / "uncommitted.diff").read_text()


def test_an_untracked_file_alone_makes_the_code_dirty(repository, tmp_path):
    git(repository, "checkout", "-q", "jobs/count.py")

    assert copy_code(repository, tmp_path / "copy")["dirty"] is True


def test_two_copies_of_the_same_code_have_one_hash_and_an_edit_another(repository, tmp_path):
    first, second = (copy_code(repository, tmp_path / name)["hash"] for name in ("one", "two"))
    (repository / "jobs" / "count.py").write_text("STEPS = 3\n")

    assert first == second != copy_code(repository, tmp_path / "three")["hash"]


def test_a_launch_folder_names_packages_seed_command_and_budget(plan, project):
    launch = write_launch(plan, project / "runs", ["launch.py", "spec"], None)

    manifest = launch.run("a-s5").folder.read_manifest()
    assert (manifest["seed"], manifest["command"]) == (5, ["launch.py", "spec"])
    assert manifest["versions"]["torch"] == metadata.version("torch")
    assert f"pydantic=={metadata.version('pydantic')}" in (launch.path / "packages.txt").read_text()
    assert launch.budget_gpu_hours == 2.5
    assert read_json(launch.path / "plan.json")["hang_timeout_min"] == 30


def test_trackers_are_in_no_id_and_may_change_while_nothing_is_at_work(plan, project, write_spec):
    launch = write_launch(plan, project / "runs", [], None)
    assert launch.run("a-s5").folder.read_manifest()["trackers"] == []

    write_spec(f"{SPEC}\ntrackers: [tensorboard]\n")
    other = make_plan("spec", cluster=None, settings=[], root=project)
    found = find_launch(other, project / "runs")
    assert found is not None and found.path == launch.path
    with pytest.raises(ConfigError, match="trackers changed since it was launched"):
        refresh(found, other, is_active=True)
    assert refresh(found, other, is_active=False) == ["trackers"]
    assert launch.run("a-s5").folder.read_manifest()["trackers"] == ["tensorboard"]
    assert launch.run("a-s5").folder.read_manifest()["seed"] == 5


def test_what_a_killed_launcher_left_is_swept_and_what_a_live_or_a_distant_one_makes_is_not(plan, project):
    runs = project / "runs"
    here, stamp = plan_module._drafter(), ".s_20260101_000000"
    dead, alive = runs / f"{stamp}.{here}.999999", runs / f"{stamp}.{here}.{os.getpid()}"
    distant, forgotten = runs / f"{stamp}.0123abcd.999999", runs / f"{stamp}.0123abcd.999998"
    for draft in (dead, alive, distant, forgotten):
        (draft / "a-s4").mkdir(parents=True)
    os.utime(forgotten, (1, 1))

    sweep_drafts(runs, "s")

    assert sorted(path.name for path in runs.iterdir()) == sorted([alive.name, distant.name])


def test_the_same_plan_is_found_again_and_another_is_not(plan, project, write_spec):
    launch = write_launch(plan, project / "runs", [], None)
    found = find_launch(plan, project / "runs")
    write_spec(SPEC.replace("steps: 4", "steps: 5"))
    other = make_plan("spec", cluster=None, settings=[], root=project)

    assert found is not None and found.path == launch.path
    assert find_launch(other, project / "runs") is None


def test_a_path_may_name_a_launch_or_one_of_its_runs(plan, project):
    launch = write_launch(plan, project / "runs", [], None)

    assert find_target(launch.path)[1] == ["a-s4", "a-s5"]
    assert find_target(launch.path / "a-s5")[1] == ["a-s5"]


def test_a_launch_of_an_earlier_version_goes_on_though_this_one_knows_more_settings(project, write_spec):
    (project / "slurm" / "test.yaml").write_text("executor: slurm\n")
    spec = "name: s\njob: count\ncluster: test\nruns: {a: {}}\n"
    write_spec(spec)
    launch = planned_launch(project)
    earlier = read_json(launch.path / "plan.json")
    del earlier["retry"]["hang"], earlier["cluster"]["health_check"]
    write_json(launch.path / "plan.json", earlier)

    def again(text):
        write_spec(spec + text)
        plan = make_plan("spec", cluster=None, settings=[], root=project)
        return refresh(Launch(launch.path), plan, is_active=True)

    assert again("") == []
    assert read_json(launch.path / "plan.json") == earlier
    with pytest.raises(ConfigError, match="retry changed since it was launched"):
        again("retry: {oom: 7}")
