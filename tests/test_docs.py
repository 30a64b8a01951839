"""What the documents say can be done, can be done."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentbridge.audit.ablations import read_launch
from latentbridge.audit.collect.table import collect
from latentbridge.audit.comparison import text as comparison
from latentbridge.audit.comparison.report import compare
from latentbridge.audit.eval_jsonl import main as audit
from latentbridge.audit.table import render
from latentbridge.config import JobConfig, Origin, Tree, build, config_id, load, read_yaml
from latentbridge.launch.cli import main
from latentbridge.launch.plan import make_plan
from latentbridge.launch.preserve import verify
from latentbridge.pretrain.config import PretrainConfig
from latentbridge.rundir import read_json
from latentbridge.translator.config import TranslatorConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SPECS = sorted(path for path in (ROOT / "configs").glob("*.yaml"))
ARCHIVES = sorted(path.parent for path in (ROOT / "preserved_data").glob("*/archive.json"))
FENCED = [part for number, part in enumerate(re.split(r"^```", README, flags=re.MULTILINE)) if number % 2]
COMMANDS = sorted(set(re.findall(r"(?:latentbridge|python launch\.py) .*$", "".join(FENCED), re.MULTILINE)))


@pytest.mark.parametrize("spec", SPECS, ids=[spec.stem for spec in SPECS])
def test_every_spec_that_ships_is_valid_and_says_what_it_costs(spec):
    plan = make_plan(str(spec), cluster=None, settings=[], root=ROOT)

    assert plan.cells
    assert spec.read_text().startswith("# "), "open with what it tests, what it costs, what is expected"
    assert re.search(r"[Ee]xpected", spec.read_text())


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))))
def test_every_relative_link_of_the_readme_leads_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_one_the_parser_knows(command, capsys):
    words = command.removeprefix("$ ").split("#")[0].split()
    verb = "launch" if words[0] == "python" else words[1]
    flags = {word.split("=")[0] for word in words if word.startswith("-")}
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    known = capsys.readouterr().out
    assert all(flag in known for flag in flags), flags


def test_summarize_eval_jsonl_answers_help_by_both_of_its_names():
    installed = Path(sys.executable).parent / "summarize_eval_jsonl"
    by_path = ROOT / "scripts" / "summarize_eval_jsonl.py"
    for command in ([installed], [sys.executable, by_path]):
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "usage" in done.stdout


def id_today(settings: dict[str, Any], job: str = "translator") -> str:
    """Id of a cell as it was written then: settings that exist only since have their defaults."""
    tree = Tree(settings, {(): Origin("archive", 0)})
    kinds: dict[str, type[JobConfig]] = {"translator": TranslatorConfig, "pretrain": PretrainConfig}
    return config_id(job, build(kinds[job], tree))


@pytest.mark.parametrize("name", ["forward_16", "reverse_16"])
def test_the_bundled_bridges_come_from_the_config_that_ships(name):
    plan = make_plan("bridges", cluster=None, settings=[], root=ROOT)
    folder = ROOT / "latentbridge" / "data" / "assets" / "bridges" / name
    origin = read_json(folder / "provenance.json")

    assert origin["config_id"] == config_id("translator", origin["config"])
    assert id_today(origin["config"]) == next(cell.id for cell in plan.cells if cell.name == name)
    assert origin["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(("name", "config"), [("llama_bpe", "target_llama"), ("gpt2_char", "source_gpt2")])
def test_the_bundled_models_come_from_the_configs_that_ship(name, config):
    origin = read_json(ROOT / "latentbridge" / "data" / "assets" / "models" / name / "provenance.json")

    plan = make_plan("models", cluster=None, settings=[], root=ROOT)
    shipped = config_id("pretrain", load(PretrainConfig, ROOT / f"configs/pretrain/{config}.yaml"))

    assert origin["config_id"] == config_id("pretrain", origin["config"])
    today = id_today(origin["config"], "pretrain")
    assert today == shipped == next(cell.id for cell in plan.cells if cell.name == name)


@pytest.mark.parametrize("archive", ARCHIVES, ids=[archive.name for archive in ARCHIVES])
def test_every_preserved_result_is_whole(archive):
    assert verify(archive) == []


@pytest.mark.parametrize(
    ("spec", "archive"),
    [("demo_gpu", "demo_gpu_20261122_121246"), ("pretrained", "pretrained_20261126_022155")],
)
def test_the_preserved_results_of_the_readmes_translators_are_of_the_specs_that_ship(spec, archive):
    plan = make_plan(spec, cluster=None, settings=[], root=ROOT)
    configs = (ROOT / "preserved_data" / archive).glob("*/config.yaml")
    assert sorted(id_today(read_yaml(path).values) for path in configs) == sorted(c.id for c in plan.cells)


def test_the_preserved_summary_is_what_is_made_of_the_archive_today_but_for_the_test():
    """Its comparisons are by Welch's t, the rule of its day; today cells of the same seeds are paired."""
    archive = ROOT / "preserved_data" / "demo_gpu_20261122_121246"
    summary = read_launch(archive)
    then = (archive / "summary.log").read_text().split("\n\n")
    now = render(summary).split("\n\n")

    ((old, new),) = [pair for pair in zip(then, now, strict=True) if pair[0] != pair[1]]
    assert old.startswith("Comparisons by Welch's t over seeds")
    assert new.startswith("Comparisons by t of pairs of seeds")
    differences = [re.findall(r"(-?0\.\d+) \[", text) for text in (old, new)]
    assert differences[0] == differences[1] == ["0.267", "0.144", "-0.176"]


def test_the_comparison_of_the_readme_is_the_one_that_the_command_makes():
    archive = ROOT / "preserved_data" / "demo_gpu_20261122_121246"
    (block,) = [part.removeprefix("text\n") for part in FENCED if part.startswith("text\n")]
    sides = [f"{archive}:{cell}" for cell in ("forward_no_fixes_soft_tokens=8", "forward_soft_tokens=8")]

    made = comparison.render(compare(sides, ["context_recovered", "bridged_accuracy"])).splitlines()

    assert [line for line in block.splitlines() if line not in made] == []


def test_the_counts_of_the_readmes_audit_are_those_of_its_archive(monkeypatch, capsys):
    """Of one archive, since whoever runs `make demo` has one more."""
    monkeypatch.chdir(ROOT)
    (block,) = [part for part in FENCED if part.startswith("\n$ summarize_eval_jsonl")]
    archive = "preserved_data/pretrained_20261126_022155"

    audit([archive])
    made = [*capsys.readouterr().out.splitlines(), *collect(Path(archive)).lines()]

    assert [line for line in block.splitlines() if line not in ("", "...", *made)] == [
        line for line in block.splitlines() if line.startswith("$")
    ]


def test_the_spec_of_the_readme_can_be_launched(tmp_path):
    (block,) = [part.removeprefix("yaml\n") for part in FENCED if part.startswith("yaml")]
    path = tmp_path / "readme.yaml"
    path.write_text(block)

    assert len(make_plan(str(path), cluster=None, settings=[], root=ROOT).cells) == 9


def _traced(*papers: str) -> str:
    """Papers that ship, without the links of their numbers."""
    text = "".join((ROOT / "papers" / name / "paper.md").read_text() for name in papers)
    return re.sub(r"\[([^\[\]]+(?:\[[^\]]+\])?)\]\(#n\d+\)", r"\1", text)


def test_every_row_of_results_in_the_readme_is_one_that_a_paper_traces_to_its_runs():
    results = r"^\| .*\d\.\d{3}.*$"
    rows = re.findall(results, README, re.MULTILINE)

    assert len(rows) > 35
    assert [row for row in rows if row not in re.findall(results, _traced("tables"), re.MULTILINE)] == []


def test_every_interval_in_the_readmes_prose_is_of_a_traced_paper_or_of_the_summary_of_its_day():
    prose = "".join(re.split(r"^```", README, flags=re.MULTILINE)[::2])
    summary = (ROOT / "preserved_data/demo_gpu_20261122_121246/summary.log").read_text()
    known = (_traced("tables", "mixtures") + summary).replace("+", "")
    found = re.findall(r"-?\d+\.\d{3} \[[-+\d., ]+\]", prose)

    assert len(found) > 60
    assert [interval for interval in found if interval.replace("+", "") not in known] == []
