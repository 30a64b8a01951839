"""What figures read of a cell."""

from latentbridge.audit.records import read_records


def test_cells_are_alike_but_for_named_settings_and_their_seeds(launch):
    for name, seed, rate, depth in (("a", 5, 0.1, 2), ("b", 6, 0.2, 2), ("c", 5, 0.1, 3)):
        launch.run(name, seed, {}, config={"seed": seed, "optim": {"lr": rate, "clip": 1.0}, "depth": depth})
    first, second, third = read_records(launch.path).cells

    assert (
        first.settings_but("optim.lr")
        == second.settings_but("optim.lr")
        == '{"depth": 2, "optim": {"clip": 1.0}}'
    )
    assert first.settings_but("optim.lr") != third.settings_but("optim.lr")
    assert first.settings_but("optim.lr", "depth") == third.settings_but("depth", "optim.lr")
    # nothing was taken out of the cell itself, and a key that is not there takes nothing out
    assert first.config["optim"]["lr"] == 0.1 and first.settings_but("absent.lr", "depth.lr") != "{}"


def test_a_log_with_a_record_without_a_step_counts_as_missing_and_is_named(launch, caplog):
    launch.run("a", 5, {})
    log = launch.path / "a-s5/train.jsonl"
    log.write_text('{"step": 3, "loss": 1.5}\n{"loss": 1.25}\n')

    assert read_records(launch.path).cells[0].runs[0].updates == []
    assert f"{log}:2: a record without a step" in caplog.text
