"""What is done to every system alike: all scenes of a check go through it at the same time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import Cluster, wait_for
from scene import LAST_STEP, Scene, SceneError

# a job of any system has begun by then, on two cores with all scenes at work at once
BEGIN_S = 150
SETTLE_S = 150
# how long a system may take to see that a job was killed
NOTICE_S = 60


def each(scenes: list[Scene], act: Callable[[Scene], object], workers: int = 4) -> None:
    """Do something to all scenes, four at a time; one that is in trouble is left alone from then on."""

    def guarded(scene: Scene) -> None:
        try:
            if not scene.trouble:
                act(scene)
        except SceneError as error:
            scene.trouble = str(error)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        list(pool.map(guarded, scenes))


def all_began(scene: Scene) -> None:
    """Wait until every cell has begun."""
    if not wait_for(lambda: all(scene.executions().values()), BEGIN_S):
        raise SceneError(f"cells began {scene.executions()} times within {BEGIN_S} s")


def at_the_gate(scene: Scene) -> None:
    """Wait until every cell has counted to its last step, and waits there."""
    if not wait_for(lambda: all(scene.saved_step(cell) == LAST_STEP for cell in scene.cells), BEGIN_S):
        raise SceneError(f"cells began {scene.executions()} times within {BEGIN_S} s, and did not count")


def finish(scenes: list[Scene]) -> None:
    """Open the gates and wait for the end of all."""
    each(scenes, Scene.open_gate)
    each(scenes, lambda scene: scene.settle(SETTLE_S), workers=len(scenes))


def repeat_the_command(scenes: list[Scene], cluster: Cluster) -> None:
    """The same command while jobs wait, while they run, and after their end."""
    each(scenes, Scene.shut_gate)
    with cluster.blocked():
        each(scenes, Scene.launch)
        each(scenes, Scene.launch)
    each(scenes, all_began)
    each(scenes, Scene.launch)
    finish(scenes)
    each(scenes, Scene.launch)
    finish(scenes)


def die_while_submitting(scenes: list[Scene], cluster: Cluster) -> None:
    """The command is killed when SLURM has accepted its first job; then the same command, at once."""
    each(scenes, Scene.shut_gate)

    def die_and_repeat(scene: Scene) -> None:
        scene.launch_dying()
        scene.launch_after_death()

    each(scenes, die_and_repeat)
    finish(scenes)


def die_while_running(scenes: list[Scene], cluster: Cluster) -> None:
    """The command, if it is still at work, is killed while cells are; then the same command."""
    each(scenes, Scene.shut_gate)
    each(scenes, Scene.launch)
    each(scenes, at_the_gate)
    each(scenes, Scene.kill_launchers)
    each(scenes, Scene.launch_after_death)
    finish(scenes)


def just_run(scenes: list[Scene], cluster: Cluster) -> None:
    """The command, once."""
    each(scenes, Scene.launch)
    finish(scenes)


def preempt(scenes: list[Scene], cluster: Cluster) -> None:
    """A job of higher rank takes all nodes while cells wait at their last step."""
    each(scenes, Scene.shut_gate)
    each(scenes, Scene.launch)
    each(scenes, at_the_gate)
    cluster.take_all_nodes(1)
    each(scenes, lambda scene: wait_for(lambda: len(scene.lines("began")) > 1, BEGIN_S))
    finish(scenes)


def kill_a_job(scenes: list[Scene], cluster: Cluster) -> None:
    """Every process of one job gets SIGKILL, the batch shell too; then the other one ends well."""
    each(scenes, Scene.shut_gate)
    each(scenes, Scene.launch)
    each(scenes, at_the_gate)
    each(scenes, _kill_and_look, workers=len(scenes))


def _kill_and_look(scene: Scene) -> None:
    """Write down when the system knew that the job had been killed."""
    job = scene.lines("began", "killed")[-1]["raw"]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            is_slurm = (process / "comm").read_text().startswith("slurmstepd")
        except OSError:
            continue
        of_job = f"SLURM_JOB_ID={job}" in environ and f"SLURM_CONF={scene.cluster.conf}" in environ
        if of_job and not is_slurm:
            os.kill(int(process.name), signal.SIGKILL)
    scene.began = time.time()
    scene.open_gate()
    truth = {"good": "done", "killed": "failed"}
    wait_for(lambda: scene.system.states(scene) == truth, NOTICE_S)
    scene.settled = time.time()
