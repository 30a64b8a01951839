"""What a real bash offers at TAB."""

from __future__ import annotations

import subprocess

import pytest
from folders import planned_launch

from latentbridge.launch.cli import main

# what bash does at TAB: the words so far, the last one unfinished, and then what the function offers
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_latentbridge latentbridge "${@: -1}" "${@: -2:1}" 2>&1
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def press_tab(tmp_path, project, capsys):
    """What is offered after these words, in the folder of the project."""
    with pytest.raises(SystemExit) as ended:
        main(["completion", "bash"])
    assert ended.value.code == 0
    file = tmp_path / "completion.bash"
    file.write_text(capsys.readouterr().out)

    def offered(*words: str) -> list[str]:
        command = ["bash", "-c", PRESS_TAB, "bash", str(file), "latentbridge", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
        return sorted(line for line in done.stdout.splitlines() if line)

    return offered


def test_commands_and_flags_complete(press_tab):
    assert press_tab("re") == ["report", "reproduce", "restore", "retry"]
    assert press_tab("launch", "--no") == ["--no-check", "--no-submit"]
    assert press_tab("completion", "") == ["bash", "fish", "zsh"]


def test_launches_and_their_runs_complete_and_so_do_specs(press_tab, project, write_spec):
    write_spec("name: s\njob: count\ncluster: local\nseeds: [4, 5]")
    launch = f"runs/{planned_launch(project).name}"

    assert press_tab("status", "runs/s_") == [launch]
    assert press_tab("explain", f"{launch}/s-") == [f"{launch}/s-s4", f"{launch}/s-s5"]
    assert press_tab("cancel", "runs/x", f"{launch}/s-s5") == [f"{launch}/s-s5"]
    assert press_tab("launch", "configs/sp") == ["configs/spec.yaml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_as_well(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])

    assert ended.value.code == 0
    assert "reproduce" in capsys.readouterr().out
