"""Profiles, resources, and the one order in which GPUs are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbridge.config import Origin, Tree, read_yaml
from latentbridge.errors import ConfigError
from latentbridge.launch.cluster import Cluster, count_gpus, load_cluster, local_gpus, resources_for

PROFILES = sorted((Path(__file__).parents[2] / "slurm").glob("*.yaml"))


def profile(**resources):
    return Cluster.model_validate({"executor": "local", "resources": resources})


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "echo H100\n" * gpus)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_counted_from_num_gpus_then_profile_then_nvidia_smi(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, gpus=3)
    monkeypatch.delenv("NUM_GPUS", raising=False)

    assert count_gpus(profile()) == 3
    assert count_gpus(profile(gpus_per_node=4)) == 4
    monkeypatch.setenv("NUM_GPUS", "2")
    assert count_gpus(profile(gpus_per_node=4)) == 2


def test_a_machine_without_gpus_counts_as_one_rank(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, gpus=0)
    monkeypatch.delenv("NUM_GPUS", raising=False)

    assert local_gpus() == []
    assert count_gpus(profile()) == 1


def test_the_seeds_nvidia_smi_count_ignored_cuda_visible_devices_ours_does_not(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, gpus=4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")

    assert local_gpus() == ["2", "3"]


def test_num_gpus_must_be_a_number(monkeypatch):
    monkeypatch.setenv("NUM_GPUS", "all")

    with pytest.raises(ConfigError, match="NUM_GPUS is 'all'"):
        count_gpus(profile())


def test_a_run_may_ask_for_more_than_its_profile_gives(monkeypatch):
    monkeypatch.delenv("NUM_GPUS", raising=False)
    wanted = Tree({"nodes": 3}, {(): Origin("spec.yaml", 1)})

    asked = resources_for(profile(gpus_per_node=2, timeout_min=7), wanted, "run 'a'")

    assert (asked.nodes, asked.gpus_per_node, asked.timeout_min) == (3, 2, 7)


def test_num_gpus_goes_before_the_profile_but_not_before_what_a_run_asks_for(monkeypatch):
    monkeypatch.setenv("NUM_GPUS", "2")
    origin = {(): Origin("spec.yaml", 1)}

    assert resources_for(profile(gpus_per_node=4), Tree({}, origin), "run 'a'").gpus_per_node == 2
    assert resources_for(profile(gpus_per_node=4), Tree({"gpus_per_node": 3}, origin), "r").gpus_per_node == 3


def test_an_unknown_profile_is_refused_with_those_there_are(project):
    with pytest.raises(ConfigError, match=r"no slurm/h200.yaml; profiles: local"):
        load_cluster("h200", project)


@pytest.mark.parametrize("path", PROFILES, ids=[path.stem for path in PROFILES])
def test_every_profile_that_ships_is_valid(path):
    assert Cluster.model_validate(read_yaml(path).values)
