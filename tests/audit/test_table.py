from rich.console import Console

from latentbridge.audit.ablations import read_launch
from latentbridge.audit.table import ACCURACY, MAX_WIDTH, RECOVERED, render, terminal_table
from latentbridge.metric import void

TRANSLATOR = [*ACCURACY.values(), *RECOVERED.values(), "bridged_nll"]


def fill(launch, metric, names=TRANSLATOR, cells=("stable", "no_fixes"), **options):
    for position, cell in enumerate(cells):
        for seed in (1234, 1235, 1236):
            values = {name: metric(0.3 + position / 10 + seed % 7 / 100) for name in names}
            launch.run(cell, seed, values, **options)
    return read_launch(launch.path)


def test_a_cell_row_shows_tokens_warm_start_and_every_accuracy(launch, metric):
    config = {"model": {"soft_tokens": 48}, "warm_start": "bundled:pilot"}

    text = render(fill(launch, metric, config=config))

    # seeds 1234 1235 1236 leave 2 3 4 when divided by 7
    row = next(line for line in text.splitlines() if line.startswith("stable "))
    assert (
        row.split()
        == ["stable", "3/3", "done", "48", "bundled:pilot", "0.330", "[0.305,", "0.355]"] + ["0.330"] * 5
    )


def test_a_run_from_scratch_says_so(launch, metric):
    assert "scratch" in render(fill(launch, metric))


def test_no_line_of_a_table_passes_the_width(launch, metric):
    cells = ["router.temperature=" + "9" * 60, "b" * 200]
    launch.compare.append(
        {"baseline": cells[0], "against": cells[1:], "metric": "context_recovered_" + "x" * 60}
    )
    launch.run("gone", 1, state="FAILED", cause="deterministic error: " + "y" * 300)

    text = render(fill(launch, metric, cells=cells)).split("\nNotes\n")[0]

    assert max(len(line) for line in text.splitlines()) <= MAX_WIDTH


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
    assert row.split()[1:] == ["1/2", "done,", "1", "FAILED", "-", "scratch"] + ["void"] * 6
    assert text.count("seed 2 FAILED (oom)") == 1
    assert "- void: a: every metric: seed 2 FAILED (oom)" in text
    assert "- void: b: bridged_nll: seed 1 not finite" in text


def test_flagged_claims_stand_in_table_and_notes(launch, metric):
    text = render(fill(launch, metric, cells=["prefix"]))

    assert "3/3 FLAGGED" in text
    assert text.count("- CLAIM FLAGGED: prefix-s") == 3


def test_a_launch_that_has_not_begun_can_be_shown(launch):
    launch.run("a", 1, state=None)

    assert "0 of 1 runs done" in render(read_launch(launch.path))


def test_the_terminal_table_has_the_same_cells(launch, metric):
    console = Console(width=200, record=True)
    console.print(terminal_table(fill(launch, metric)))

    shown = console.export_text()

    assert "no_fixes" in shown
    assert "0.330 [0.305, 0.355]" in shown
