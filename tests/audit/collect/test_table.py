import errno
import gzip
import json
import os

import pytest

from latentbridge.audit.collect.table import collect, published
from latentbridge.launch.cli import main


@pytest.fixture
def run(tmp_path):
    """Makes a run folder of ours, with so many evaluations."""

    def make(name, labels=("250", "final"), run_id="0123456789ab", accuracy=0.5, state="DONE"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        folder.joinpath("config.yaml").write_text("seed: 17\n")
        manifest = {"name": folder.name, "cell": folder.name.split("-")[0], "seed": 17, "id": run_id}
        folder.joinpath("manifest.json").write_text(json.dumps(manifest))
        found = {"value": accuracy, "n": 8, "low": 0.2, "high": 0.8}
        metrics = {"bridged_accuracy": found, "source_alone_accuracy": {"n": 0, "void": "not asked for"}}
        lines = (json.dumps({"step": 250, "label": label, "metrics": metrics}) + "\n" for label in labels)
        folder.joinpath("metrics.jsonl").write_text("".join(lines))
        folder.joinpath(state).write_text("{}")
        return folder

    return make


def test_a_run_of_ours_keeps_intervals_and_reasons(run, tmp_path):
    run("launch/stable-s17")

    first, second = collect(tmp_path).rows[:2]

    assert (first.run, first.cell, first.seed, first.config) == (
        "launch/stable-s17",
        "stable",
        17,
        "0123456789ab",
    )
    assert (first.label, first.step, first.value, first.n, first.low) == ("250", 250, 0.5, 8, 0.2)
    assert (second.value, second.void) == (None, "not asked for")


def test_a_measured_zero_is_zero_and_a_missing_final_evaluation_is_void(run, tmp_path):
    run("a-s17", accuracy=0.0)
    run("b-s17", labels=(), state="FAILED", run_id="b" * 12).joinpath("metrics.jsonl").unlink()

    frame = collect(tmp_path).frame()

    zero = frame[(frame.run == "a-s17") & (frame.metric == "bridged_accuracy")]
    gone = frame[frame.run == "b-s17"]
    assert zero.value.tolist() == [0.0, 0.0]
    assert zero.void.isna().all()
    assert gone.value.isna().all()
    assert gone.void.tolist() == ["no final evaluation: FAILED"]


def test_compressed_evaluations_are_read_like_plain_ones(run, tmp_path):
    run("a-s17")
    folder = run("b-s17", run_id="b" * 12)
    plain = folder / "metrics.jsonl"
    plain.with_name("metrics.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()

    found = collect(tmp_path)

    first, second = ([(r.label, r.metric, r.value, r.void) for r in found.rows[i : i + 4]] for i in (0, 4))
    assert first == second
    assert found.rows[4].flags == ("identical file to a-s17/metrics.jsonl",)


def test_equal_configs_and_equal_files_are_flagged_by_the_first_that_has_them(run, tmp_path):
    run("a/stable-s17")
    run("b/stable-s17")
    run("c/other-s17", run_id="c" * 12, accuracy=0.25)

    flags = {row.run: row.flags for row in collect(tmp_path).rows}

    assert flags == {
        "a/stable-s17": (),
        "b/stable-s17": ("identical file to a/stable-s17/metrics.jsonl", "identical config to a/stable-s17"),
        "c/other-s17": (),
    }


def test_what_a_launch_makes_from_its_runs_is_not_read_a_second_time(run, tmp_path):
    folder = run("launch/stable-s17")
    for name in ("plan.json", "spec.yaml", "summary.log", "bench_summary.csv"):
        (tmp_path / "launch" / name).write_text("of ours\n")
    for name in ("metrics.json", "training_results.json"):
        (folder / name).write_text("{}")
    for inside in (folder / "attempts" / "1", folder / "checkpoints"):
        inside.mkdir(parents=True)
        (inside / "train.log").write_text("not a published one")
    (tmp_path / "launch" / "code").mkdir()
    (tmp_path / "launch" / "code" / "metrics.json").write_text("{}")

    found = collect(tmp_path)

    assert (found.files, found.unreadable) == (1, [])


def command(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["collect", *map(str, arguments)])
    return stop.value.code


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.log", b"nothing of the kind\n"),
        ("train.log", b""),
        ("summary.log", b"\0" * 9),
        ("metrics.json", b"{"),
        ("metrics.json", b"[1]"),
        ("metrics.json", b'{"accuracy": 1}'),
        ("training_results.json", b'{"config": {}, "results": 3}'),
        ("ablation_results.json", b'{"1a": 3}'),
        ("x_summary.csv", b"a,b\n1,2\n"),
        ("x_summary.csv", b"variant,step,eval_loss\nR,10\n"),
        ("x_summary.csv", b"variant,step,eval_loss\nR,10,high\n"),
        ("train_log.jsonl", b'{"step": 200}\n{"step"\n'),
        ("train_log.jsonl", b'{"loss": 2.5}\n'),
        ("train_log.jsonl", b'{"step": "first", "loss": 2.5}\n'),
        ("train_log.jsonl", b'{"step": 1.5, "loss": 2.5}\n'),
        ("train_log.jsonl", b'{"step": 1e30, "loss": 2.5}\n'),
        ("ablation_results.json", b'{"1a": {"evals": [{"step": "x", "bridged": 1}]}}'),
    ],
)
def test_a_file_that_looks_known_and_cannot_be_read_is_named_and_exit_code_1(
    run, tmp_path, capsys, name, content
):
    run("stable-s17")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / name).write_bytes(content)

    code = command(tmp_path)

    printed = capsys.readouterr()
    assert code == 1
    assert f"{tmp_path}/odd/{name}" in printed.err
    assert printed.out.splitlines()[-1] == "1 file, 1 run, 4 rows, 2 void; 1 unreadable"


def test_a_folder_of_one_damaged_file_is_not_called_one_of_no_known_kind(tmp_path, capsys):
    (tmp_path / "train_log.jsonl").write_bytes(b'{"loss": 2.5\n')

    assert command(tmp_path) == 1
    assert "known kind" not in capsys.readouterr().err


def test_a_mixture_becomes_one_table_in_csv_and_json(run, tmp_path):
    run("ours/stable-s17")
    (tmp_path / "theirs").mkdir()
    log = "[Final Eval] Source-alone acc: 0.540 | Target-alone acc: 0.770 | Bridged acc: 0.645\n"
    (tmp_path / "theirs" / "train.log").write_text(log)
    out = tmp_path / "out"
    out.mkdir()

    code = command(tmp_path, "--csv", out / "table.csv", "--json", out / "table.json")

    lines = (out / "table.csv").read_text().splitlines()
    records = json.loads((out / "table.json").read_text())
    assert code == 0
    assert lines[0] == ("source,layout,run,cell,seed,config,label,step,metric,value,n,low,high,void,flags")
    assert len(lines) - 1 == len(records) == 7
    assert {record["layout"] for record in records} == {"latentbridge", "latentwire"}
    assert [r["value"] for r in records if r["metric"] == "source_alone_accuracy"] == [None, None, 0.54]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.jsonl", '"step": 250', '"step": "250 of 500"'),
        ("metrics.jsonl", '"n": 8', '"n": "8 or 9"'),
        ("metrics.jsonl", '"value": 0.5', '"value": "half"'),
        ("manifest.json", '"seed": 17', '"seed": "seventeen"'),
    ],
)
def test_a_run_with_one_odd_number_is_named_and_costs_the_others_no_table(run, tmp_path, name, old, new):
    run("a-s17")
    path = run("b-s17", run_id="b" * 12) / name
    path.write_text(path.read_text().replace(old, new))

    found = collect(tmp_path)

    assert found.frame().run.unique().tolist() == ["a-s17"]
    assert len(found.unreadable) == 1
    assert str(tmp_path / "b-s17" / "metrics.jsonl") in found.unreadable[0]


def test_steps_that_were_written_as_floats_are_steps(tmp_path):
    (tmp_path / "train_log.jsonl").write_text('{"step": 200.0, "loss": 2.5}\n')

    assert collect(tmp_path).frame().step.tolist() == [200]


def test_a_folder_with_nothing_known_is_exit_code_1(tmp_path):
    assert command(tmp_path) == 1


def test_published_files_that_were_compressed_are_read_like_plain_ones(tmp_path):
    log = "[Final Eval] Target-alone acc: 0.770 | Bridged acc: 0.645\n"
    for name, text in (("train.log", log), ("train_log.jsonl", '{"step": 25, "ppl": 4.5}\n')):
        for folder in ("plain", "packed"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "plain" / name).write_text(text)
        (tmp_path / "packed" / f"{name}.gz").write_bytes(gzip.compress(text.encode()))

    found = collect(tmp_path)

    read = {
        run: [(row.metric, row.value) for row in found.rows if row.run == run] for run in ("plain", "packed")
    }
    assert len(read["plain"]) == 3 and read["packed"] == read["plain"]
    assert found.files == 4


def test_a_byte_order_mark_hides_nothing(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "metrics.json").write_bytes(mark + b'{"final_metrics": {"val_loss": 2.5}}')
    (tmp_path / "x_summary.csv").write_bytes(mark + b"variant,step,eval_loss\r\nR,10,2.25\r\n")
    (tmp_path / "train_log.jsonl").write_bytes(mark + b'{"step": 25, "ppl": 4.5}\r\n')

    found = collect(tmp_path)

    assert found.unreadable == []
    assert [row.value for row in found.rows if row.value] == [2.5, 4.5, 2.25]


def test_runs_behind_links_are_read_once_and_under_their_own_names(put, tmp_path):
    for name, ppl in (("disk/b", 2.5), ("runs/a", 1.5), ("other", 3.5)):
        put(f"{name}/train_log.jsonl", json.dumps({"step": 25, "ppl": ppl}))
    put("runs/archive.json", {"what": "import writes"})
    links = {"b": "../disk/b", "latest": "a", "again": "../disk/b", "circle": ".."}
    for name, target in links.items():
        (tmp_path / "runs" / name).symlink_to(target)

    found = collect(tmp_path / "runs")

    assert [(row.run, row.value) for row in found.rows] == [("a", 1.5), ("again", 2.5)]
    assert (found.unreadable, found.unknown) == ([], [])


def test_a_link_to_nothing_is_named_with_what_helps(run, tmp_path):
    run("a-s17")
    (tmp_path / "train.log").symlink_to(tmp_path / "gone")

    found = collect(tmp_path)

    assert [row.run for row in found.rows] == ["a-s17"] * 4
    assert found.unreadable[0].startswith(
        f"{tmp_path}/train.log: cannot be read (No such file or directory); "
    )


def test_every_file_that_is_not_read_is_named_with_what_helps(tmp_path):
    for folder, text in (("a", ""), ("b", "{"), ("c", "null"), ("d", '{"history": 3}'), ("e", '{"x": 1}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metrics.json").write_text(text)

    reasons = collect(tmp_path).unreadable

    assert [
        reason.startswith(f"{tmp_path}/{folder}/") for folder, reason in zip("abcde", reasons, strict=True)
    ]
    assert all(
        reason.endswith("copy it again from where it was written, or take it out of the folder")
        for reason in reasons
    )


def refuse(monkeypatch, folder):
    """Lets nobody list a folder; root, whom rights do not stop, included."""
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


def test_a_folder_that_may_not_be_listed_is_named_and_costs_no_other(run, tmp_path, monkeypatch):
    run("a-s17")
    (tmp_path / "closed").mkdir()
    refuse(monkeypatch, tmp_path / "closed")

    found = collect(tmp_path)

    assert len(found.rows) == 4
    assert found.unreadable[0].startswith(f"{tmp_path}/closed: cannot be listed (Permission denied); mend")


def test_reasons_are_printed_with_how_many_rows_they_are_of(tmp_path, capsys):
    (tmp_path / "x_summary.csv").write_text("variant,step,eval_loss\nR,10,\nR,20,\nR,30,2.5\n")

    command(tmp_path)

    assert capsys.readouterr().out.splitlines()[1:] == [
        "    void: empty in the file (2 rows)",
        "    ! holds the balance loss: no language loss (3 rows)",
        "1 file, 1 run, 3 rows, 2 void; 0 unreadable",
    ]


def test_what_is_no_folder_is_refused_with_what_to_name(tmp_path, capsys):
    (tmp_path / "train.log").write_text("")

    assert command(tmp_path / "train.log") == 2
    assert "train.log: no such folder; name one that holds runs" in capsys.readouterr().err


def test_a_launch_of_ours_without_its_plan_is_not_called_a_published_system_s(run, tmp_path):
    assert published(tmp_path) == published(tmp_path / "nowhere") == ""
    run("launch/stable-s17")
    (tmp_path / "launch" / "summary.log").write_text("of ours\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "eval_samples_step_final.jsonl").write_text("")

    assert published(tmp_path / "launch") == ""
    assert published(tmp_path / "theirs").startswith("it holds a published system's results")
