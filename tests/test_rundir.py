import errno
import gzip
import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from latentbridge import rundir
from latentbridge.errors import DamageError, LockedError, RunError
from latentbridge.rundir import (
    RunDir,
    append_jsonl,
    hash_file,
    hash_stored,
    hold_lock,
    keep_records,
    last_record,
    read_json,
    read_jsonl,
    read_object,
    write_atomic,
    write_json,
)


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def fork(work) -> int:
    """Run `work` in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def test_a_writer_that_is_killed_leaves_the_old_content_or_the_new(tmp_path):
    path, old, new = tmp_path / "state.json", "old" * 50_000, "new" * 80_000
    path.write_text(old)
    seen = set()

    for delay_ms in range(12):
        child = fork(lambda: [write_atomic(path, text) for _ in range(10**6) for text in (new, old)])
        time.sleep(delay_ms / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.add(path.read_text())

    assert seen <= {old, new}


def test_a_refused_write_leaves_no_draft_and_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_json(path, {"a": 2})

    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_others_may_read_what_was_written(tmp_path):
    write_json(tmp_path / "x.json", {"name": "é"})

    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o644
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["", '{"a": ', "[1, 2"])
def test_a_damaged_document_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)

    with pytest.raises(RunError, match=r"x\.json: cannot be read as JSON"):
        read_json(path)
    with pytest.raises(RunError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")


def test_records_come_back_in_order_and_a_missing_file_holds_none(tmp_path):
    path = tmp_path / "train.jsonl"
    assert list(read_jsonl(path)) == []

    for step in (20, 40, 60):
        append_jsonl(path, {"step": step, "text": "line\nbreak \u2028 é"})

    assert [record["step"] for record in read_jsonl(path)] == [20, 40, 60]
    assert path.read_bytes().count(b"\n") == 3


def test_wherever_the_last_line_is_torn_the_lines_before_it_stand(tmp_path):
    path = tmp_path / "train.jsonl"
    append_jsonl(path, {"step": 1})
    first = path.stat().st_size
    append_jsonl(path, {"step": 2, "text": "é"})
    whole = path.read_bytes()

    for length in range(first, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert list(read_jsonl(path)) == [{"step": 1}], f"{length} bytes"


@pytest.mark.parametrize("line", ['{"st', "[2]", "null", "2"])
def test_damage_before_the_last_line_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')

    with pytest.raises(RunError, match=r"train\.jsonl:2: not a JSON record"):
        list(read_jsonl(path))


@pytest.mark.parametrize("length", [5, 40, None])
def test_a_compressed_file_is_read_by_its_plain_name_and_damage_is_named(tmp_path, length):
    path = tmp_path / "train.jsonl"
    lines = b"".join(b'{"step": %d}\n' % step for step in (1, 2, 3, 11))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines)[:length])

    if length is None:
        assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3, 11]
    else:
        with pytest.raises(RunError, match=r"train\.jsonl\.gz: damaged within what gzip holds"):
            list(read_jsonl(path))


def test_a_compressed_file_hashes_as_what_it_holds_and_as_what_lies_there(tmp_path):
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(b"{}\n")
    packed.write_bytes(gzip.compress(b"{}\n", mtime=0))

    # sha256 of the three bytes, by sha256sum
    digest = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert [hash_file(plain), hash_stored(plain), hash_stored(tmp_path / "b.jsonl")] == [digest] * 3
    assert hash_file(packed) != digest
    with pytest.raises(FileNotFoundError):
        hash_stored(tmp_path / "c.jsonl")


def test_what_a_power_cut_left_unreadable_costs_neither_the_last_record_nor_the_resumed_run(tmp_path, caplog):
    path = tmp_path / "train.jsonl"
    for step in (1, 2, 3):
        append_jsonl(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b"\0" * 6000 + b"\n")
    assert last_record(path) == {"step": 3}

    keep_records(path, lambda record: record["step"] <= 2)

    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 2}]
    assert "1 lines could not be read" in caplog.text


def test_a_file_that_another_host_replaces_meanwhile_is_read_again(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"step": 4})
    read, failures = Path.read_text, [errno.ESTALE, errno.ESTALE]

    def stale(self, **words):
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        return read(self, **words)

    monkeypatch.setattr(Path, "read_text", stale)

    assert read_json(tmp_path / "x.json") == {"step": 4}
    failures.append(errno.EIO)
    with pytest.raises(RunError, match=r"x\.json: cannot be read"):
        read_json(tmp_path / "x.json")


def test_a_number_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_jsonl(tmp_path / "x.jsonl", {"loss": float("inf")})
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("size", [1, 300, 5_000, 70_000])
@pytest.mark.parametrize("torn", ["", '{"st', '{"step": 99, "text": "' + "y" * 9_000])
def test_the_last_record_is_the_last_whole_one_however_long_lines_are(tmp_path, size, torn):
    path = tmp_path / "train.jsonl"
    for step in (1, 2, 3):
        append_jsonl(path, {"step": step, "text": "x" * size})
    with open(path, "a") as file:
        file.write(torn)

    assert last_record(path)["step"] == 3


@pytest.mark.parametrize("content", ["", '{"step": 1', '{"step": 1, "text": "' + "y" * 9_000])
def test_without_a_whole_record_there_is_no_last_one(run, content):
    assert run.last_step() == 0
    run.train_log.write_text(content)

    assert run.last_step() == 0


def test_the_last_step_is_read_from_the_end_of_the_file(run, monkeypatch):
    for step in range(1, 2001):
        append_jsonl(run.train_log, {"step": step, "loss": 0.5})
    read, loads = [], json.loads
    monkeypatch.setattr("latentbridge.rundir.json.loads", lambda line: read.append(line) or loads(line))

    assert run.last_step() == 2000
    assert len(read) == 1


def test_an_object_that_is_none_or_lacks_a_key_is_named(tmp_path):
    path = tmp_path / "plan.json"
    for content, said in (
        ("[1]", "a JSON object is needed, not a list"),
        ('{"runs": []}', "the key name, cell is missing"),
    ):
        path.write_text(content)
        with pytest.raises(DamageError, match=f"plan.json: {said}; the file was damaged"):
            read_object(path, "name", "runs", "cell")


def test_the_last_step_is_of_the_last_record_that_is_one(tmp_path):
    run = RunDir(tmp_path)
    run.train_log.write_text('{"step": 7}\n[11]\n')
    assert run.last_step() == 7
    run.train_log.write_text('{"loss": 7.0}\n')
    assert run.last_step() == 0


def test_keep_records_drops_what_is_refused_and_a_torn_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')

    keep_records(path, lambda record: record["step"] != 2)
    append_jsonl(path, {"step": 4})

    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4]


def test_keep_records_makes_no_file(tmp_path):
    keep_records(tmp_path / "none.jsonl", lambda record: True)

    assert list(tmp_path.iterdir()) == []


def test_attempts_are_counted_as_numbers(run):
    for number in ("2", "10", "9"):
        (run.attempts / number).mkdir(parents=True)
    (run.attempts / "notes").mkdir()

    assert [folder.name for folder in run.list_attempts()] == ["2", "9", "10"]
    assert run.new_attempt().name == "11"


def test_two_callers_never_get_the_same_attempt(run):
    made = []
    threads = [threading.Thread(target=lambda: made.append(run.new_attempt().name)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(int, made)) == list(range(1, 17))


def test_a_manifest_is_replaced_and_a_folder_made_by_hand_has_none(run):
    assert run.read_manifest() == {}
    run.write_manifest({"name": "a", "backoff": 1})

    assert run.read_manifest() == {"name": "a", "backoff": 1}


def test_progress_is_that_of_the_latest_attempt(run):
    assert run.read_progress() == {}
    write_json(run.progress_file(run.new_attempt()), {"stage": "training", "done": 3, "total": 7})
    assert run.read_progress()["done"] == 3
    run.new_attempt()

    assert run.read_progress() == {}


def test_beats_tell_every_rank_its_process_and_its_age(run):
    attempt, now = run.new_attempt(), time.time()
    assert (run.beats(attempt), run.newest_beat(attempt)) == ([], None)
    for rank, pid, age_s in ((10, 700, 40), (9, 600, 90), (2, 500, 65), (0, 900, 50), (7, 800, 70)):
        path = run.beat_file(attempt, rank)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"pid": pid, "node": rank // 8, "rank": rank})
        os.utime(path, (now - age_s, now - age_s))

    beats = run.beats(attempt)

    assert [beat[:3] for beat in beats] == [
        (0, 900, 0), (2, 500, 0), (7, 800, 0), (9, 600, 1), (10, 700, 1),
    ]  # fmt: skip
    assert [beat.age_s for beat in beats] == pytest.approx([50, 65, 70, 90, 40], abs=5)
    assert run.newest_beat(attempt) == pytest.approx(now - 40)


def test_a_run_without_a_marker_has_no_state(run):
    assert run.state is None
    assert run.read_marker() == {}
    assert run.list_attempts() == []


def test_the_later_marker_replaces_the_earlier_and_done_is_final(run):
    run.mark("FAILED", {"cause": "oom"})
    run.mark("STOPPED", {"reason": "preempted"})
    assert (run.state, run.read_marker()) == ("STOPPED", {"reason": "preempted"})

    run.mark("DONE", {"steps": 3})
    run.mark("FAILED", {"cause": "error"})
    run.clear_marker()

    assert (run.state, run.read_marker()) == ("DONE", {"steps": 3})
    assert not (run.path / "FAILED").exists()


def test_done_counts_even_if_its_writer_died_before_removing_the_old_marker(run):
    write_json(run.path / "FAILED", {"cause": "oom"})
    write_json(run.path / "DONE", {"steps": 3})

    assert run.state == "DONE"


def test_clearing_forgets_a_failure(run):
    run.mark("FAILED", {"cause": "oom"})
    run.clear_marker()

    assert run.state is None


def test_a_run_that_becomes_done_while_another_marker_is_written_stays_done(run, monkeypatch):
    def finish_meanwhile(path, record):
        write_json(run.path / "DONE", {"steps": 3})
        write_json(path, record)

    monkeypatch.setattr(rundir, "write_json", finish_meanwhile)

    run.mark("FAILED", {"cause": "node_fail"})

    assert (run.state, run.read_marker()) == ("DONE", {"steps": 3})


def test_evaluations_are_named_by_step_or_word(run):
    assert run.eval_samples(250).name == "eval_samples_step_250.jsonl"
    assert run.eval_samples("final").name == "eval_samples_step_final.jsonl"


def test_a_lock_keeps_others_out_and_ends_with_its_holder(run):
    child = fork(lambda: (hold_lock(run.worker_lock, 0), time.sleep(60)))
    deadline = time.monotonic() + 10
    while not run.is_locked() and time.monotonic() < deadline:
        time.sleep(0.01)

    with pytest.raises(LockedError, match=r"worker\.lock"):
        hold_lock(run.worker_lock, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert not run.is_locked()
    hold_lock(run.worker_lock, 0).close()


def test_a_disk_without_locks_keeps_nobody_out_and_one_that_cannot_lock_for_now_is_not_taken_for_it(
    run, monkeypatch
):
    def flock(number):
        def refuse(file, operation):
            raise OSError(number, os.strerror(number))

        return refuse

    monkeypatch.setattr(rundir.fcntl, "flock", flock(errno.ENOSYS))
    hold_lock(run.worker_lock, 0).close()
    monkeypatch.setattr(rundir.fcntl, "flock", flock(errno.ENOLCK))
    with pytest.raises(LockedError, match=r"worker\.lock: it cannot be locked \(No locks available\)"):
        hold_lock(run.worker_lock, 0)
