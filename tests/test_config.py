import math
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from latentbridge.config import (
    Config,
    JobConfig,
    Origin,
    Tree,
    build,
    config_id,
    dump,
    load,
    parse_scalar,
    read_yaml,
    to_yaml,
)
from latentbridge.errors import ConfigError


class Inner(Config):
    weight: float = Field(0.5, ge=0)
    start_step: int = 0


class Losses(Config):
    info_nce: Inner = Inner()
    kl: Inner | None = None


class Settings(JobConfig):
    """A job with one of everything."""

    lr: float = 1e-3
    label: str = "x"
    mode: Literal["max", "min"] = "max"
    on: bool = False
    steps: list[int] = [1]
    losses: Losses = Losses()
    source: str = "gpt"
    target: str = "llama"


@pytest.fixture
def read(tmp_path):
    """YAML text to a tree, called spec.yaml in messages."""

    def parse(text: str | bytes, name: str = "spec.yaml") -> Tree:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_yaml(tmp_path / name, name)

    return parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("-0x1F", "-0x1F"),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("+7", 7),
        ("-.inf", -math.inf),
        ("off", "off"),
        ("yes", "yes"),
        ("n", "n"),
        ("12:30:00", "12:30:00"),
        ("2026-11-22", "2026-11-22"),
        ("1_000", "1_000"),
        ("1.2.3", "1.2.3"),
        (".", "."),
        ("True", True),
        ("tRue", "tRue"),
        ("~", None),
        ("", None),
        ("Null", None),
        ("none", "none"),
    ],
)
def test_unquoted_words_follow_yaml_1_2(text, value, read):
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)
    assert read(f"key: {text}\n").values == {"key": value}


def test_nan_is_a_number():
    assert math.isnan(parse_scalar(".nan"))


@pytest.mark.parametrize("text", ["1e-4", "off", "true", "null", "0x1F"])
def test_quotes_make_text(text, read):
    assert read(f"a: '{text}'\nb: \"{text}\"\n").values == {"a": text, "b": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "spec.yaml:3: the key 'a' was already set in line 1; keep one of them"),
        ("x:\n  a: 1\n  a: 2\n", "spec.yaml:3: the key 'a' was already set in line 2"),
        ("a: !danger 5\n", "spec.yaml:1: the tag '!danger' is not allowed"),
        ("a: !!python/name:os.system x\n", "is not allowed"),
        ("ok: 1\n? [1, 2]\n: 3\n", "spec.yaml:2: a key must be a word"),
        ("a: 1\n b: 2\n", "spec.yaml:2: not valid YAML"),
        ("a: 'x\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "spec.yaml:2: not valid YAML"),
        ("- 1\n- 2\n", "spec.yaml:1: the top level must be a mapping"),
        ("a: \x07\n", "spec.yaml: not valid YAML: unacceptable character"),
        ("a: &x [1, *x]\n", "spec.yaml: an alias (*name) stands inside its own anchor"),
        (b"a: \xff\n", "spec.yaml: cannot be read"),
    ],
)
def test_a_file_that_breaks_a_rule_is_named_with_its_line(read, text, message):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\ufeff"])
def test_an_empty_file_holds_no_settings(read, text):
    assert read(text).values == {}


def test_an_anchor_may_be_used_again(read):
    tree = read("a: &one {x: 1}\nb: *one\n").override(read("b.x: 2\n", "run.yaml"))

    assert tree.values == {"a": {"x": 1}, "b": {"x": 2}}


def test_overrides_merge_mappings_and_replace_all_else(read):
    base = read("lr: 1\nlosses: {info_nce: {weight: 1.0, start_step: 3}}\nsteps: [1, 2]\n")

    merged = base.override(read("losses: {info_nce: {weight: 0.0}}\nsteps: [9]\n"))

    assert merged.values == {
        "lr": 1,
        "losses": {"info_nce": {"weight": 0.0, "start_step": 3}},
        "steps": [9],
    }
    assert base.values["losses"]["info_nce"]["weight"] == 1.0


@pytest.mark.parametrize("text", ["losses.info_nce.weight: 0.0", "losses: {info_nce.weight: 0.0}"])
def test_a_dotted_key_reaches_inside(read, text):
    base = read("losses: {info_nce: {weight: 1.0, start_step: 3}}\n")

    assert base.override(read(text)).values == {"losses": {"info_nce": {"weight": 0.0, "start_step": 3}}}


def test_an_empty_mapping_changes_nothing_in_a_mapping(read):
    base = read("losses: {kl: null, info_nce: {weight: 1.0}}\n")

    merged = base.override(read("losses: {info_nce: {}, kl: {}}\n"))

    assert merged.values == {"losses": {"kl": {}, "info_nce": {"weight": 1.0}}}


def test_null_may_be_filled_again(read):
    merged = read("losses: {kl: null}\n").override(read("losses.kl.weight: 0.1\n"))

    assert merged.values == {"losses": {"kl": {"weight": 0.1}}}


def test_reaching_into_a_number_is_refused_where_it_is_written(read):
    with pytest.raises(ConfigError) as error:
        read("lr: 0.1\n").override(read("a: 1\nlr.decay: 2\n", "run.yaml"))

    assert str(error.value) == (
        "run.yaml:2: 'lr.decay' reaches into 'lr', which is 0.1 (a number), not a mapping"
    )


def test_every_setting_remembers_who_wrote_it_last(read):
    base = read("seed: 1\nlosses:\n  info_nce:\n    weight: 1.0\n", "base.yaml")

    tree = base.override(read("\nlosses.info_nce.start_step: 4\n", "run.yaml"))

    assert str(tree.origin(("losses", "info_nce", "weight"))) == "base.yaml:4"
    assert str(tree.origin(("losses", "info_nce", "start_step"))) == "run.yaml:2"
    assert str(tree.origin(("seed", "below"))) == "base.yaml:1"


def test_swap_exchanges_settings_and_their_origins(read):
    tree = read("seed: 7\nsource: a\ntarget: b\n")

    swapped = tree.swap("source", "target", Origin("run.yaml", 5))

    assert swapped.values == {"seed": 7, "source": "b", "target": "a"}
    assert swapped.origin(("source",)).line == 3
    with pytest.raises(ConfigError, match=r"run\.yaml:5: swap names 'sauce', which is not set"):
        tree.swap("sauce", "target", Origin("run.yaml", 5))


def test_a_branch_that_is_no_mapping_is_refused(read):
    assert read("runs: null\n").branch("runs").values == {}
    with pytest.raises(ConfigError, match=r"spec\.yaml:1: 'runs' is \[1\] \(a list\); it must be a mapping"):
        read("runs: [1]\n").branch("runs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning: 1", "spec.yaml:1: unknown key 'lerning'"),
        ("losses: {info_nce: {wieght: 1}}", "unknown key 'losses.info_nce.wieght'; did you mean 'weight'?"),
        ("losses: {kl: {wieght: 1}}", "did you mean 'weight'?"),
        ("lr: '1e-4'", "'lr' is '1e-4' (text); input should be a valid number; write 1e-4 without quotes"),
        ("seed: 1.5", "'seed' is 1.5 (a number)"),
        ("seed: -1", "greater than or equal to 0"),
        ("on: 'yes'", "YAML 1.2 knows true and false only"),
        ("on: 1", "'on' is 1 (an integer)"),
        ("label: 5", "'label' is 5 (an integer)"),
        ("seed: true", "'seed' is True (true/false)"),
        ("mode: mix", "'mode' is 'mix' (text)"),
        ("steps: [1, x]", "'steps.1' is 'x' (text)"),
        ("losses: 3", "'losses' is 3 (an integer)"),
        ("lr:", "'lr' is empty"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_the_rule(read, text, message):
    with pytest.raises(ConfigError) as error:
        build(Settings, read(text))
    assert message in str(error.value)


def test_all_complaints_come_together_with_the_run_s_name(read):
    with pytest.raises(ConfigError) as error:
        build(Settings, read("lr: fast\nseed: 1\nmode: mix\n"), where="run '2a'")

    lines = str(error.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["spec.yaml:1", "run '2a'"],
        ["spec.yaml:3", "run '2a'"],
    ]


def test_a_missing_setting_is_named(read):
    class Needy(Config):
        model: str

    with pytest.raises(ConfigError, match="'model' is missing; it has no default, so set it"):
        build(Needy, read("{}"))


def test_settings_cannot_change_after_they_were_checked():
    with pytest.raises(ValidationError):
        Settings().lr = 2.0


AWKWARD = [
    "1e-4", "12e4567", "0o17", "5", "off", "~", "", "null", "2026-11-22", "12:30:00", "1_000", ".inf", "<<",
    "a\nb", " x ", "'q'", "#x", "- a", "a: b", "é → 字", "\t", "=", "true", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_survives_a_config_file(tmp_path, text):
    config = Settings(label=text)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")

    assert load(Settings, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("number", [1e-5, 5e-324, 1e22, 0.1 + 0.2, -0.0, math.inf, 3.0])
def test_any_number_survives_a_config_file(tmp_path, number):
    config = Settings(lr=number)
    (tmp_path / "config.yaml").write_text(to_yaml(config))

    assert load(Settings, tmp_path / "config.yaml").lr == number


def test_a_config_file_spells_out_every_default(tmp_path, read):
    assert read(to_yaml(Settings())).values == dump(Settings())
    assert "start_step: 0" in to_yaml(Settings())


def test_the_id_is_of_the_computation_not_of_how_it_was_written(read):
    plain = build(Settings, read("lr: 1\nseed: 3\n"))
    other = build(Settings, read("# same\nseed: 3\nlosses: {}\nlr: 1.0\n"))

    assert config_id("job", plain) == config_id("job", other)
    assert len(config_id("job", plain)) == 12


@pytest.mark.parametrize(
    "text", ["seed: 4", "lr: 2", "losses.kl.weight: 0.5", "losses: {kl: {}}", "steps: []"]
)
def test_whatever_changes_the_computation_changes_the_id(read, text):
    base = read("seed: 3\n")

    changed = build(Settings, base.override(read(text)))

    assert config_id("job", changed) != config_id("job", build(Settings, base))


def test_the_id_tells_jobs_apart():
    assert config_id("translator", Settings()) != config_id("pretrain", Settings())


def test_the_id_of_a_config_does_not_drift():
    # a changed id would make finished runs run again; sha256 of {"config":{"seed":5},"job":"job"}
    assert config_id("job", JobConfig(seed=5)) == "f0f2f1451cd6"
