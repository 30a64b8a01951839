"""Runs on real SLURM daemons that lose what they stand on: nodes, memory, time, peers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from launching import steps_of, wait_for
from mishaps import Lab, causes, counted, is_done, processes_of

from latentbridge.launch.node.nodes import report_bad
from latentbridge.launch.slurm.text import node_names, parse_fields
from latentbridge.rundir import read_json


@pytest.fixture
def lab(cluster, project):
    """A project on the three-node cluster; its jobs leave the queue before the next test."""
    made = Lab(cluster, project)
    yield made
    made.tidy_up()


@pytest.mark.repeats(3)
def test_runs_whose_head_or_second_node_died_go_on_and_later_requests_leave_those_nodes_out(
    lab, record_property
):
    folder = lab.launch("""
        wide: {steps: 180, step_s: 0.3, resources: {nodes: 2, gpus_per_node: 1}},
        plain: {steps: 111, step_s: 0.3, resources.gpus_per_node: 4},
    """)
    wide, plain = folder / "wide", folder / "plain"
    wait_for(lambda: counted(wide) > 3 and counted(plain) > 3)
    dead = [node_names(lab.state(wide)["nodes"])[1], lab.state(plain)["nodes"]]

    lab.crash(*dead)
    wait_for(lambda: all(lab.is_down(node) for node in dead))
    noticed = time.time()
    lab.restore()

    wait_for(lambda: is_done(wide) and is_done(plain))
    assert causes(wide) == causes(plain) == ["node_fail", "done"]
    for run in (wide, plain):
        back_s = read_json(run / "attempts" / "2" / "env.json")["started"] - noticed
        record_property("back at work after SLURM noticed a dead node, s", round(back_s, 1))
        assert back_s < 90
    assert steps_of(wide) == list(range(1, 181))
    assert steps_of(plain) == list(range(1, 112))
    assert lab.state(plain)["gpu_hours"] > 4 * 111 * 0.3 / 3600, "what the dead node used counts"
    bad = read_json(folder.parent / ".bad_nodes" / f"{dead[0]}.json")
    assert bad["until"] - bad["since"] == 24 * 3600
    earlier = left_out(lab, dead)
    assert lab.command("launch", "s", "--new").returncode == 0

    def spared():
        return [names for job, names in left_out(lab, dead).items() if job not in earlier]

    # SLURM requeues the plain run by itself, and may have its node back before anyone can ask about it
    reported = len(list((folder.parent / ".bad_nodes").iterdir()))
    # of three nodes the plain run can spare two, the wide one only the latest; scontrol may be behind
    wait_for(lambda: sorted(map(len, spared())) == [1, reported])


def left_out(lab, nodes):
    """By job that was told to stay away from any of these nodes: from which of them."""
    shown = lab.cluster.run("scontrol", "show", "job", "--oneliner").stdout.splitlines()
    jobs = [parse_fields(line) for line in shown]
    found = {job["JobId"]: {*node_names(job["ExcNodeList"])} & {*nodes} for job in jobs}
    return {job: names for job, names in found.items() if names}


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.torture
def test_ranks_that_lost_a_silent_node_name_it_before_slurm_notices(lab):
    cells = "a: {mishap: lost peer, at: 20, steps: 24, step_s: 0.3, resources: {nodes: 2, gpus_per_node: 1}}"
    run = lab.launch(cells) / "a"
    beat = run / "attempts" / "1" / "beats" / "rank_1"
    wait_for(beat.exists)
    # nobody on the other node can say anything any more
    rank = read_json(beat)["pid"]
    worker = parent(parent(rank))
    for pid in (worker, parent(rank), rank):
        os.kill(pid, signal.SIGSTOP)

    wait_for(lambda: is_done(run))

    assert causes(run) == ["node_fail", "done"]
    assert "no word from gpu0" in read_json(run / "attempts" / "1" / "exit.json")["message"]
    assert len(list((run.parents[1] / ".bad_nodes").iterdir())) == 1


def test_a_node_that_fails_its_health_check_is_left_out_and_the_run_goes_on_elsewhere(lab):
    check = "health_check: ['test \"$SLURMD_NODENAME\" != gpu01 || { echo gpu 3 is gone; exit 1; }']\n"

    run = lab.launch("a: {steps: 4}", profile=check) / "a"

    wait_for(lambda: is_done(run))
    assert causes(run) == ["node_fail", "done"]
    first, second = (read_json(run / "attempts" / n / "env.json")["nodes"] for n in "12")
    assert first == "gpu01" and second != "gpu01"
    assert "gpu 3 is gone" in read_json(run.parents[1] / ".bad_nodes" / "gpu01.json")["reason"]


def test_bad_nodes_that_are_unknown_here_or_cannot_be_spared_are_not_left_out(lab):
    runs = lab.project / "runs"
    runs.mkdir()
    report_bad(runs, ["gpu99", "gpu03", "gpu02"], "it burnt", "x", hours=1)

    run = lab.launch("a: {steps: 3, resources: {nodes: 2, gpus_per_node: 1}}") / "a"

    wait_for(lambda: is_done(run))


@pytest.mark.repeats(3)
def test_each_mishap_is_named_and_met_by_its_own_rule_while_other_runs_go_on(lab, record_property):
    folder = lab.launch(
        """
        hung: {mishap: hang, rank: 1, resources: {nodes: 2, gpus_per_node: 1}},
        outgrown: {mishap: memory, train.batch_size: 8, resources.mem_gb: 1},
        not_requeued: {mishap: error, at: 3, steps: 8},
        fails_alike: {mishap: error, times: 99}, sound: {steps: 120, step_s: 0.2},
        imports: {mishap: import, times: 99},
        """,
        hang_s=20,
        profile="max_parallel: 8",
    )
    lab.forbid_requeue(folder / "not_requeued")
    wait_for(lambda: (folder / "fails_alike" / "FAILED").exists())
    assert not is_done(folder / "sound")
    others = ("hung", "outgrown", "not_requeued", "sound")
    wait_for(lambda: all(is_done(folder / name) for name in others))

    wait_for(lambda: (folder / "imports" / "FAILED").exists())
    ended = (*others, "fails_alike", "imports")
    assert {path.name: causes(path) for path in map(folder.joinpath, ended)} == {
        "hung": ["hang", "done"],
        "outgrown": ["host_oom", "done"],
        "not_requeued": ["error", "done"],
        "fails_alike": ["error", "error"],
        "imports": ["error", "error"],
        "sound": ["done"],
    }
    assert read_json(folder / "outgrown" / "manifest.json")["backoff"] == 1
    assert steps_of(folder / "not_requeued") == list(range(1, 9))
    first, second = (read_json(folder / "not_requeued" / "attempts" / n / "env.json")["slurm"] for n in "12")
    assert first.partition(".")[0] != second.partition(".")[0], "a new submission"
    state = lab.state(folder / "fails_alike")
    assert (state["phase"], state["cause"]) == ("failed", "error")
    assert state["gpu_hours"] > 0, "what failed attempts used counts"
    silent_s = read_json(folder / "hung" / "attempts" / "1" / "hung.json")["silent_s"]
    record_property("hang: found after its timeout, s", silent_s - 20)
    assert silent_s < 20 + 30
    stacks = folder / "hung" / "attempts" / "1" / "stacks"
    assert "wait_for_the_other_rank" in (stacks / "rank_0.txt").read_text()
    assert "hang_by_myself" in (stacks / "rank_1.txt").read_text()
    assert not processes_of(folder / "hung" / "attempts" / "1")


@pytest.mark.repeats(10)
@pytest.mark.parametrize(
    ("grace_s", "signalled"),
    [
        (0, False),
        pytest.param(15, True, marks=pytest.mark.torture),
        pytest.param(15, False, marks=pytest.mark.torture),
        pytest.param(0, True, marks=pytest.mark.torture),
    ],
)
def test_a_preempted_run_goes_on_where_it_was(grace_s, signalled, lab, preempting):
    with preempting(grace_s, signalled) as preempt:
        run = lab.launch("a: {steps: 40, step_s: 0.2}") / "a"
        wait_for(lambda: counted(run) > 3)

        preempt()

        wait_for(lambda: is_done(run))
    assert causes(run) == ["preempted", "done"]
    assert steps_of(run) == list(range(1, 41))


@pytest.mark.torture
def test_attempts_that_come_no_further_end_whatever_the_other_rules_allow(lab):
    run = lab.launch("a: {mishap: error, times: 99}", deterministic=None, error=9, no_progress=3) / "a"

    wait_for(lambda: (run / "FAILED").exists())

    assert causes(run) == ["error"] * 4
    assert "4 attempts came no further than 2; see retry.no_progress" in read_json(run / "FAILED")["why"]


@pytest.mark.torture
def test_a_run_longer_than_its_time_limit_ends_in_several_attempts_without_anybodys_help(lab):
    cells = "a: {steps: 260, step_s: 0.5, resources.timeout_min: 1}"
    run = lab.launch(cells, profile="signal_delay_s: 15", timeout=9) / "a"

    wait_for(lambda: is_done(run), 400)

    assert len(causes(run)) > 2
    assert set(causes(run)[:-1]) == {"timeout"}
    assert steps_of(run) == list(range(1, 261))
