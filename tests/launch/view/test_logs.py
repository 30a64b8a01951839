"""What a run printed: every node's files, of the attempt that was asked for, followed to the end."""

from __future__ import annotations

import threading
import time

import pytest
from folders import begin, end, planned_launch

from latentbridge.errors import RunError
from latentbridge.launch.view import logs
from latentbridge.rundir import RunDir


@pytest.fixture
def launch(project, write_spec, monkeypatch):
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    monkeypatch.setattr(logs, "LOOK_SOON_S", 0.01)
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}, b: {steps: 4}}")
    return planned_launch(project)


@pytest.fixture
def run(launch):
    return launch.run("a")


def test_files_come_in_the_order_of_nodes_each_under_its_header(launch, run, capsys):
    attempt = end(run, "done")
    for name in ("stderr_node10", "stdout_node10", "stderr", "stdout_node2", "stdout"):
        (attempt / f"{name}.log").write_text(f"from {name}\n")
    (attempt / "stderr_node2.log").touch()

    assert logs.show(launch, "a", None, follow=False) == 0

    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    names = ["stdout", "stderr", "stdout_node2", "stdout_node10", "stderr_node10"]
    assert lines == [line for name in names for line in (f"==> a/attempts/1/{name}.log <==", f"from {name}")]


def test_the_last_attempt_is_shown_unless_another_is_asked_for(launch, run, capsys):
    for text in ("first", "second"):
        (end(run, "error", again=True) / "stderr.log").write_text(text)

    logs.show(launch, "a", None, follow=False)
    assert "second" in capsys.readouterr().out
    logs.show(launch, "a", 1, follow=False)
    assert "first" in capsys.readouterr().out


def test_an_attempt_that_does_not_exist_is_refused_with_those_that_do(launch, run):
    end(run, "error", again=True)
    end(run, "error", again=True)

    with pytest.raises(RunError, match=r"there is no attempt 3; it has 1, 2$"):
        logs.show(launch, "a", 3, follow=False)
    with pytest.raises(RunError, match="there is no attempt 1; it has none yet"):
        logs.show(launch, "b", 1, follow=False)


def test_a_run_that_never_began_says_why_and_shows_what_its_worker_said(launch, capsys):
    (launch.path / "ledger" / "b.worker.log").write_text("No module named latentbridge\n")

    assert logs.show(launch, "b", None, follow=False) == 1

    out = capsys.readouterr().out
    assert "b is planned" in out
    assert "==> ledger/b.worker.log <==\nNo module named latentbridge" in out


def test_slurms_own_error_log_stands_in_for_logs_that_are_empty(launch, run, capsys):
    (end(run, "error") / "stdout.log").touch()
    submission = launch.ledger.accepted(launch.ledger.intend(["b", "a"]), "31")
    folder = launch.path / "slurm" / submission.token
    folder.mkdir(parents=True)
    (folder / "31_0_0_log.err").write_text("of b")
    (folder / "31_1_0_log.err").write_text("srun: error: gpu02: task 0: Out Of Memory")

    logs.show(launch, "a", None, follow=False)

    out = capsys.readouterr().out
    assert "attempt 1 of a printed nothing" in out and "Out Of Memory" in out and "of b" not in out


def test_stacks_are_listed(launch, run, capsys):
    attempt = end(run, "hang")
    for rank, text in enumerate(["", "Current thread 0x1\n"]):
        file = RunDir.stack_file(attempt, rank)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    logs.show(launch, "a", None, follow=False)

    assert [line for line in capsys.readouterr().out.splitlines() if "stack" in line] == [
        f"where a rank stood: {RunDir.stack_file(attempt, 1)}"
    ]


def test_a_character_that_is_half_written_is_printed_once_it_is_whole(launch, run, capsys):
    log = begin(run) / "stdout.log"
    reader = logs.Reader(run, log.parent)
    log.write_bytes("ü".encode()[:1])
    assert reader.print_new()
    with open(log, "ab") as file:
        file.write("ü".encode()[1:] + b"\n")
    reader.print_new()

    assert capsys.readouterr().out.splitlines()[-1] == "ü"
    assert not reader.print_new()


def test_following_goes_on_into_the_next_attempt_and_ends_with_the_cause(launch, run, capsys, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(RunDir, "is_locked", lambda self: not over.is_set())

    def work():
        (begin(run) / "stdout.log").write_text("one\n")
        time.sleep(0.1)
        (begin(run) / "stdout.log").write_text("two\n")
        time.sleep(0.1)
        (end(run, "error", "ValueError: told to") / "stderr.log").write_text("three\n")
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    code = logs.show(launch, "a", None, follow=True)
    worker.join()

    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert code == 1
    wanted = ["one", "two", "three", "==> a is failed: error: ValueError: told to"]
    assert [line for line in lines if line in wanted] == wanted


def test_following_a_run_that_is_done_ends_at_once(launch, run, capsys):
    (end(run, "done") / "stdout.log").write_text("all\n")

    assert logs.show(launch, "a", None, follow=True) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "==> a is done"
