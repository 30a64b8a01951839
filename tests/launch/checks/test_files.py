"""What runs lack on this disk is found before they are queued."""

from __future__ import annotations

import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from latentbridge.config import Origin
from latentbridge.launch.checks import files
from latentbridge.launch.checks.files import find_missing, find_missing_paths, find_risks
from latentbridge.launch.cluster import Cluster


def slurm(**settings):
    return Cluster.model_validate({"executor": "slurm", **settings})


@pytest.fixture
def whole_python(tmp_path, monkeypatch):
    """An interpreter that has all it needs: every module that is looked for is one of Python's own."""
    monkeypatch.setattr(files, "NEEDED", ("json", "email"))
    return str(sys.executable)


def test_a_place_that_has_everything_passes(whole_python, tmp_path):
    (tmp_path / "env.sh").touch()
    setup = [f"module load cuda; source '{tmp_path}/env.sh'", ". venv", "source $ON_THE_NODE/x # /no/where"]

    assert list(find_missing(slurm(python=whole_python, setup=setup), "p", tmp_path / "new" / "runs")) == []
    assert not (tmp_path / "new").exists()


def test_a_run_folder_below_a_file_cannot_be_written(whole_python, tmp_path):
    (tmp_path / "file").touch()

    for runs in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        (text,) = find_missing(slurm(), "p", runs)
        assert text.startswith(f"{runs}: not writable")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is not a program here"), ("", "is not a program here"), ("#!/bin/sh\nexit 3\n", "not a working"),
     ("#!/no/interpreter\n", "does not run"), ("#!/bin/sh\necho torch yaml\n", "lacks torch, yaml; install")],
)  # fmt: skip
def test_an_interpreter_that_cannot_run_a_job_is_refused(tmp_path, content, words):
    python = tmp_path / "python"
    if content is not None:
        python.write_text(content)
        python.chmod(0o755 if content else 0o644)

    (text,) = find_missing(slurm(python=str(python)), "slurm/x.yaml", tmp_path)

    assert text.startswith("slurm/x.yaml: python '")
    assert words in text


def test_a_module_that_the_interpreter_lacks_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "NEEDED", ("json", "no_such_module"))

    assert list(find_missing(slurm(), "p", tmp_path)) == [
        f"this interpreter '{sys.executable}' lacks no_such_module; install latentbridge there, or give "
        "another"
    ]


def test_a_bare_name_must_be_on_path_unless_setup_may_bring_it(tmp_path):
    (text,) = find_missing(slurm(python="python9"), "p", tmp_path)

    assert "'python9' is not on PATH" in text
    assert list(find_missing(slurm(python="python9", setup=["module load python"]), "p", tmp_path)) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [("source /no/env.sh", "reads /no/env.sh"), ("true && . /no/env.sh", "reads /no/env.sh"),
     ("source ~/no/env.sh", "reads .*/no/env.sh"),
     ("source $HOME/no/env.sh", "reads .*/no/env.sh"), ("source 'open", "cannot be read by a shell")],
)  # fmt: skip
def test_a_setup_line_that_cannot_work_is_refused(whole_python, tmp_path, line, words):
    (text,) = find_missing(slurm(setup=[line]), "slurm/x.yaml", tmp_path)

    assert re.match(f"slurm/x.yaml: setup line `{re.escape(line)}` {words}", text), text


def test_paths_in_configs_must_exist_and_are_told_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    configs = {
        "a": {"model": "/no/model", "data": ["./there", "../gone"], "prompt": "see /no/where", "steps": 3},
        "b": {
            "model": "/no/model",
            "data": str(tmp_path / "there"),
            "cache": "~/no/cache",
            "end": "bundled:x",
        },
    }

    assert list(find_missing_paths(configs, lambda run, key: Origin(f"{run}.yaml", len(key)))) == [
        "a.yaml:5: run 'a' and 1 more: model is '/no/model', which does not exist here; correct the path",
        "a.yaml:4: run 'a': data is '../gone', which does not exist here; correct the path",
        "b.yaml:5: run 'b': cache is '~/no/cache', which does not exist here; correct the path",
    ]


def test_a_nearly_full_disk_and_folders_of_one_node_are_risks(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    usage = namedtuple("usage", "total used free")(100, 40, 3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    cluster = slurm(python="/dev/shm/venv/bin/python")

    full, runs, python = find_risks(cluster, "slurm/x.yaml", Path("/tmp/runs"))

    assert full == "/tmp/runs: 3 MiB are left on this disk; make room for checkpoints and logs"
    assert runs.startswith("slurm/x.yaml: run folder /tmp/runs: other nodes may not see it")
    assert python.startswith("slurm/x.yaml: interpreter /dev/shm/venv/bin/python: other nodes")


def test_on_one_machine_every_folder_is_seen():
    assert list(find_risks(Cluster(executor="local"), "p", Path("/tmp/runs"))) == []
