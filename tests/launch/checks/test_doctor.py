"""What doctor finds, what it says that means, and when it ends with 1."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace

import pytest
from recorded import limits_2205, limits_2511

from latentbridge.launch.checks import doctor as doctor_module
from latentbridge.launch.checks.doctor import disk_rows, doctor, limit_rows, package_rows, preemption
from latentbridge.launch.cluster import Cluster

PROFILE = Cluster(executor="slurm", partition="low")


@pytest.mark.parametrize(
    ("grace_s", "sends_user_signal", "found", "verdict"),
    [
        (0, False, "SIGTERM, 30 s to save, then killed and requeued", "warn"),
        (90, False, "SIGTERM, 90 s to save, then killed and requeued", "good"),
        (90, True, "USR2, 90 s to save, then killed and requeued", "good"),
        (0, True, "USR2 with SIGTERM, 30 s to save, then killed and requeued", "warn"),
    ],
)
def test_each_way_to_set_up_preemption_is_explained(grace_s, sends_user_signal, found, verdict):
    limits = limits_2205(sends_user_signal=sends_user_signal)

    row = preemption(limits, replace(limits.partitions[0], grace_s=grace_s), PROFILE)

    assert (row.name, row.found, row.verdict) == ("preemption in low", found, verdict)
    assert bool(row.remedy) is (verdict == "warn")


@pytest.mark.parametrize(
    ("mode", "words"),
    [("OFF", "never"), ("CANCEL", "cancelled, and submitted again"), ("SUSPEND,GANG", "suspended in place")],
)
def test_each_mode_of_preemption_is_explained(mode, words):
    limits = limits_2205()

    assert words in preemption(limits, replace(limits.partitions[0], preempt_mode=mode), PROFILE).found


def test_preemption_by_qos_goes_by_the_qos_of_the_profile():
    limits = limits_2205(preempt_type="preempt/qos", preempt_mode="CANCEL")
    low = limits.partitions[0]

    short = PROFILE.model_copy(update={"qos": "short"})
    assert preemption(limits, low, short).found == "SIGTERM, 90 s to save, then killed and requeued"
    assert "30 s to save, then killed and cancelled" in preemption(limits, low, PROFILE).found


def test_a_site_without_preemption_says_never():
    limits = limits_2511()

    assert preemption(limits, limits.partitions[0], PROFILE).found == "never"


def test_limits_are_told_with_what_they_mean():
    rows = {row.name: row for row in limit_rows(limits_2205(), "slurm/x.yaml", PROFILE)}

    assert rows["submit limit"].found == "40 jobs in the queue (slurm/x.yaml)"
    assert rows["MaxArraySize"].found == "1001: larger arrays are split"
    assert rows["accounting"].found == "on, enforcing associations, limits, qos"
    assert {row.verdict for row in rows.values()} == {"good"}


def test_a_short_memory_for_ended_jobs_matters_only_without_accounting():
    without = {row.name: row for row in limit_rows(limits_2511(), "p", PROFILE)}
    with_it = {row.name: row for row in limit_rows(limits_2205(min_job_age_s=20), "p", PROFILE)}

    assert (without["MinJobAge"].verdict, with_it["MinJobAge"].verdict) == ("warn", "good")
    assert without["accounting"].found.startswith("off")
    assert without["submit limit"].found == "none known"


def test_accounting_that_does_not_answer_is_told():
    rows = {row.name: row for row in limit_rows(limits_2205(associations=None), "p", PROFILE)}

    assert (rows["accounting"].found, rows["accounting"].verdict) == ("does not answer", "warn")


def test_a_missing_package_is_bad_and_an_optional_one_only_a_warning(monkeypatch):
    monkeypatch.setattr(
        doctor_module, "versions", lambda: {"torch": None, "transformers": None, "python": "3"}
    )

    assert {row.name: row.verdict for row in package_rows()} == {
        "torch": "bad", "transformers": "warn", "python": "good",
    }  # fmt: skip


def test_a_disk_that_launches_can_work_on_is_good_and_left_clean(tmp_path):
    rows = list(disk_rows(tmp_path / "runs"))

    assert [row.name for row in rows] == [
        "runs/", "locks (flock)", "hard links", "clock of the disk", "disk space",
    ]  # fmt: skip
    assert {row.verdict for row in rows[:4]} == {"good"}
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_disk_without_locks_or_links_is_bad(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "link", refuse)

    found = {row.name: (row.found, row.verdict) for row in disk_rows(tmp_path)}

    assert found["locks (flock)"] == found["hard links"] == ("Operation not supported", "bad")


def test_a_clock_that_runs_apart_from_the_disks_is_told(tmp_path, monkeypatch):
    true_time = doctor_module.time.time
    monkeypatch.setattr(doctor_module.time, "time", lambda: true_time() + 7)

    (row,) = [row for row in disk_rows(tmp_path) if row.name == "clock of the disk"]

    assert (row.verdict, row.remedy) == ("warn", "have both hosts follow one time server")
    assert row.found.startswith(("7.0", "7.1"))


def test_doctor_works_without_slurm_and_fails_only_for_what_is_bad(project, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor(project) == 0
    assert "not here: runs execute on this machine" in capsys.readouterr().out

    (project / "runs").rmdir()
    (project / "runs").touch()
    assert doctor(project) == 1
    assert "make it a folder that you may write" in capsys.readouterr().out


def test_doctor_shows_a_cluster(project, monkeypatch, capsys):
    (project / "slurm" / "h100.yaml").write_text("executor: slurm\npartition: low\n")
    monkeypatch.setattr(doctor_module.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(doctor_module, "read_limits", limits_2205)

    assert doctor(project) == 0
    shown = capsys.readouterr().out
    for words in (
        "partitions of testcluster",
        "main*",
        "2 of 3 in service",
        "1440 min",
        "22.05.8 on",
        "2 a100",
    ):
        assert words in shown, words
