"""What the documents say can be done, can be done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentbridge.launch.cli import main
from latentbridge.launch.plan import make_plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SPECS = sorted(path for path in (ROOT / "configs").glob("*.yaml"))
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
