import pytest

from latentbridge.audit.ablations import read_launch
from latentbridge.audit.table import ACCURACY, MAX_WIDTH, RECOVERED, Block, render
from latentbridge.metric import void
from latentbridge.rundir import append_jsonl, write_json

TRANSLATOR = [*ACCURACY.values(), *RECOVERED.values(), "bridged_nll", "compression_prompt"]


def fill(launch, metric, names=TRANSLATOR, cells=("stable", "no_fixes"), **options):
    for position, cell in enumerate(cells):
        for seed in (1234, 1235, 1236):
            # a little more apart with every seed: pairs without a spread get no verdict
            apart = position * (0.1 + (seed - 1235) / 1000)
            values = {name: metric(0.3 + apart + seed % 7 / 100) for name in names}
            launch.run(cell, seed, values, **options)
    return read_launch(launch.path)


def section(text, title):
    """The lines under a title, up to the next empty one."""
    return text.split(f"\n\n{title}")[1].split("\n\n")[0].splitlines()[1:]


def test_a_cell_row_shows_tokens_warm_start_and_every_accuracy(launch, metric):
    config = {"model": {"soft_tokens": 48}, "warm_start": "bundled:pilot"}

    text = render(fill(launch, metric, config=config))

    # seeds 1234 1235 1236 leave 2 3 4 when divided by 7
    row = next(line for line in text.splitlines() if line.startswith("stable "))
    assert (
        row.split()
        == ["stable", "3/3", "done", "48", "bundled:pilot", "0.330", "[0.305,", "0.355]"] + ["0.330"] * 6
    )


def test_the_cascade_is_a_column_beside_what_it_is_made_of_and_absent_where_it_was_not_measured(
    launch, metric
):
    values = {name: metric(0.25) for name in TRANSLATOR} | {"cascade_accuracy": metric(0.375)}
    launch.run("a", 1, values)
    head, _, row = section(render(read_launch(launch.path)), "Cells")

    assert head.split()[5:] == [
        "bridged",
        "source",
        "target",
        "cut",
        "text",
        "cascade",
        "no",
        "source",
        "shuffled",
    ]
    assert row.split()[-3:] == ["0.375", "0.250", "0.250"]
    assert "cascade_accuracy" not in render(read_launch(launch.path))
    del values["cascade_accuracy"]
    launch.run("a", 2, values)
    assert "- void: a: cascade_accuracy: seed 2 not measured" in render(read_launch(launch.path))


def test_a_run_from_scratch_says_so(launch, metric):
    assert "scratch" in render(fill(launch, metric))


def test_no_line_of_a_table_passes_the_width(launch, metric):
    cells = ["router.temperature=" + "9" * 60, "b" * 200]
    launch.compare.append(
        {"baseline": cells[0], "against": cells[1:], "metric": "context_recovered_" + "x" * 60}
    )
    launch.run("gone", 1, state="FAILED", cause="deterministic error: " + "y" * 300)

    text = render(fill(launch, metric, cells=cells))

    assert "\nNotes\n" in text
    assert max(len(line) for line in text.splitlines()) <= MAX_WIDTH


def test_names_of_a_grid_are_whole_in_every_section(launch, metric):
    cells = ["forward_no_fixes_soft_tokens=8", "reverse_no_fixes_soft_tokens=16"]
    launch.compare.append({"baseline": cells[0], "against": [cells[1]], "metric": "bridged_accuracy"})
    config = {"model": {"soft_tokens": 16}, "warm_start": "bundled:fwd_16"}

    text = render(fill(launch, metric, cells=cells, config=config))

    found = {title: section(text, title) for title in ("Cells", "Context", "Comparisons", "Runs")}
    assert [len(lines) - 2 for lines in found.values()] == [2, 2, 1, 6]
    assert found["Comparisons"][-1].split()[:3] == [cells[1], "won", cells[0]]
    assert found["Runs"][-1].startswith(f"{cells[1]}-s1236  DONE")
    assert all(found[title][-1].startswith(f"{cells[1]}  ") for title in ("Cells", "Context"))


def test_a_name_beyond_44_characters_is_cut_in_the_middle():
    block = Block(
        "Runs", ["run", "state"], [["b" * 40 + "_soft_tokens=16-s1234", "DONE"], ["c" * 44, "DONE"]]
    )

    assert [row.split() for row in block.lines()[4:]] == [
        ["b" * 21 + "…" + "_soft_tokens=16-s1234".rjust(22, "b"), "DONE"],
        ["c" * 44, "DONE"],
    ]


def test_names_give_way_to_numbers_and_keep_their_ends(launch, metric):
    cells = ["a" * 40 + "=16", "a" * 40 + "=32"]
    config = {"model": {"soft_tokens": 16}, "warm_start": "runs/bridges/forward_16-s1234"}

    rows = section(render(fill(launch, metric, cells=cells, config=config)), "Cells")[2:]

    assert [row.split()[0][-4:] for row in rows] == ["a=16", "a=32"]
    assert [row.split()[-1] for row in rows] == ["0.330", "0.430"]
    assert all("_16-s1234 " in row for row in rows)


def test_what_the_columns_are_made_of_is_left_to_summary_json(launch, metric):
    summary = fill(launch, metric)

    assert not any(word in render(summary) for word in ("Other metrics", "_nll", "compression"))
    assert {"bridged_nll", "compression_prompt"} <= set(summary.as_record()["cells"][0]["metrics"])


def test_what_replies_cost_has_a_table_of_its_own_a_row_a_method(launch, metric):
    values = {"ttft_s": 0.25, "tpot_s": 0.0125, "kv_mib": 17.5}
    timed = {f"{method}_{name}": metric(v) for method in ("bridged", "cascade") for name, v in values.items()}
    launch.run("stable", 1, {**timed, "kv_saved_mib": metric(-0.5)})

    text = render(read_launch(launch.path))

    assert [line.split() for line in section(text, "Inference")[2:]] == [
        ["stable", "bridged", "0.250", "12.500", "17.500", "-0.500"],
        ["stable", "cascade", "0.250", "12.500", "17.500", "-"],
    ]
    assert "Other metrics" not in text


def test_sections_come_headline_first_and_single_runs_last(launch, metric):
    launch.compare.append({"baseline": "stable", "against": ["no_fixes"], "metric": "bridged_accuracy"})

    text = render(fill(launch, metric, names=[*TRANSLATOR, "val_loss"]))

    titles = [block.splitlines()[0].split()[0].strip(":") for block in text.split("\n\n")[1:]]
    assert text.splitlines()[1].startswith("bridged_accuracy 0.430 [")
    assert titles == ["Cells", "Context", "Other", "Comparisons", "Runs", "Notes"]


def test_an_accuracy_over_seeds_never_passes_0_or_1(launch, metric):
    for seed, share in ((1, 0.0), (2, 0.1)):
        values = {"bridged_accuracy": metric(share), "context_recovered": metric(1.0 - share)}
        launch.run("a", seed, values)

    text = render(read_launch(launch.path))

    # t(1, 0.975) = 12.7062 times 0.05
    assert "0.050 [0.000, 0.685]" in text
    assert "0.950 [0.315, 1.585]" in text


@pytest.mark.parametrize(("failed", "listed"), [(0, 0), (2, 2)])
def test_of_many_runs_only_those_not_done_are_listed(launch, metric, failed, listed):
    for seed in range(24 - failed):
        launch.run("many", seed, {"bridged_accuracy": metric(0.5)})
    for seed in range(failed):
        launch.run("gone", seed, state="FAILED", cause="oom")

    title, *rows = render(read_launch(launch.path)).split("\n\nRuns: ")[1].split("\n\n")[0].splitlines()

    left = "the 2 of 24 that are not done" if failed else "all 24 are done"
    assert title == f"{left}; {launch.path.name}/summary.json has every run"
    assert [row.split()[:2] for row in rows[2:]] == [[f"gone-s{seed}", "FAILED"] for seed in range(listed)]


def test_23_runs_are_listed_one_by_one(launch, metric):
    for seed in range(23):
        launch.run("few", seed, {"bridged_accuracy": metric(0.5)})

    assert len(section(render(read_launch(launch.path)), "Runs [")) == 2 + 23


def test_metrics_of_another_workload_are_listed(launch, metric):
    text = render(fill(launch, metric, names=["val_loss", "expert_load_cv"]))

    assert "stable    expert_load_cv  0.330 [0.305, 0.355]" in text
    assert "Context recovered" not in text
    assert "bridged" not in text


def test_a_void_reads_void_and_its_reason_stands_once_in_the_notes(launch, metric):
    launch.run("a", 1, {name: metric(0.5) for name in TRANSLATOR})
    launch.run("a", 2, state="FAILED", cause="oom")
    launch.run("b", 1, {**{name: metric(0.5) for name in TRANSLATOR}, "bridged_nll": void("not finite")})

    text = render(read_launch(launch.path))

    row = next(line for line in text.splitlines() if line.startswith("a "))
    assert row.split()[1:] == ["1/2", "done,", "1", "FAILED", "-", "scratch"] + ["void"] * 7
    assert text.count("seed 2 FAILED (oom)") == 1
    assert "- void: a: every metric: seed 2 FAILED (oom)" in text
    assert "- void: b: bridged_nll: seed 1 not finite" in text


def test_flagged_claims_stand_in_table_and_notes(launch, metric):
    text = render(fill(launch, metric, cells=["prefix"]))

    assert "3/3 FLAGGED" in text
    assert text.count("- CLAIM FLAGGED: prefix-s") == 3


def test_a_run_that_backed_off_is_flagged_in_the_notes_and_in_summary_json(launch, metric):
    for seed, backoff in ((1, None), (2, 1), (3, 2)):
        folder = launch.run("a", seed, {"bridged_accuracy": metric(0.5)})
        if backoff:
            folder.write_manifest({**folder.read_manifest(), "backoff": backoff})

    summary = read_launch(launch.path)

    notes = " ".join(section(render(summary), "Notes"))
    assert "MICRO-BATCH HALVED: a-s2: once after out-of-memory" in notes
    assert "MICRO-BATCH HALVED: a-s3: 2 times after out-of-memory" in notes
    assert "a-s1" not in notes
    record = summary.as_record()
    assert ([run["backoff"] for run in record["runs"]], len(record["flags"])) == ([0, 1, 2], 2)


def test_a_launch_that_has_not_begun_can_be_shown(launch):
    launch.run("a", 1, state=None)

    assert "0 of 1 runs done" in render(read_launch(launch.path))


def test_a_language_model_and_its_routers_have_columns_of_their_own(launch, metric):
    metrics = {
        f"{split}_{name}": metric(0.5)
        for split in ("val", "test")
        for name in ("nll", "demand_cv", "entropy")
    }
    launch.run("softk", 1, metrics | {"test_bits_per_byte": metric(2.25)})
    launch.run("hash", 1, {"test_bits_per_byte": metric(2.5), "test_demand_cv": metric(0.25)})

    text = render(read_launch(launch.path))

    assert "softk  2.250 [2.230, 2.270]  -    0.500" in text
    assert "hash   0.250 [0.230, 0.270]  -        -     -     -              -           -" in text
    assert "Other metrics" not in text


def test_a_language_models_throughput_is_shown_in_percentiles_over_the_log_records_of_all_seeds(
    launch, metric
):
    for seed, rates in (
        (1, [900.0, 1100.0, 1200.0, 1300.0, 1400.0, 1500.0]),
        (2, [1000.0, 1600.0, 1700.0, 2e3, 1e4]),
    ):
        folder = launch.run("small", seed, {"test_nll": metric(2.0)}, config={"text": {"context": 8}})
        for step, rate in enumerate(rates):
            append_jsonl(folder.train_log, {"step": step, "tokens_per_s": rate})
    # a translator's tokens are of two models, and some are read twice
    append_jsonl(launch.run("bridge", 1, {}).train_log, {"step": 1, "tokens_per_s": 5.0})
    found = read_launch(launch.path)

    _, _, row = section(render(found), "Training: tokens a second")
    assert row.split() == ["small", "1,000", "1,400", "2,000"]
    cells = {cell["cell"]: cell.get("tokens_per_s") for cell in found.as_record()["cells"]}
    assert cells == {"small": {"p10": 1000, "p50": 1400, "p90": 2000}, "bridge": None}


def test_throughput_of_runs_that_shared_a_card_is_called_that(launch, metric):
    """Six runs to a card measured the card's other runs, and looked like a model's speed."""
    for seed in (1, 2):
        folder = launch.run("small", seed, {"test_nll": metric(2.0)}, config={"text": {}})
        append_jsonl(folder.train_log, {"step": 1, "tokens_per_s": 4096.0})
        attempt = folder.new_attempt()
        write_json(attempt / "env.json", {"host": "node1", "cards": "3"})
        write_json(attempt / "exit.json", {"began": 10.0 * seed, "ended": 50.0})
    text = render(read_launch(launch.path))

    assert "evaluations and checkpoints; of shared cards" in text
    assert "shared: 2 runs had a card, or a machine without one, with others, up to 2 at once" in text


def test_a_single_log_record_is_all_percentiles(launch, metric):
    folder = launch.run("small", 1, {"test_nll": metric(2.0)}, config={"text": {}})
    append_jsonl(folder.train_log, {"step": 1, "tokens_per_s": 4096.0})

    assert (
        section(render(read_launch(launch.path)), "Training: tokens a second")[-1].split()[1:]
        == ["4,096"] * 3
    )
