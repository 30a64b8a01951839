"""A real SLURM cluster for the tests of this folder: started once a session, in a folder of its own."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTCLUSTER = HERE.parents[1] / "slurm/testcluster"
UNFIT_MACHINE = 2


@dataclass(frozen=True)
class Cluster:
    """One running test cluster."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "etc/slurm.conf"

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command on this cluster, SLURM's tools included; its failure is for the caller to judge."""
        environ = os.environ | {"SLURM_CONF": str(self.conf), "SLURM_TEST_DIR": str(self.folder)}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)

    def testcluster(self, *argv: str) -> str:
        """Have slurm/testcluster do something to this cluster; returns its output."""
        done = self.run(TESTCLUSTER, *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def crash(self, node: str) -> None:
        self.testcluster("crash", node)

    def restore(self, node: str) -> None:
        self.testcluster("restore", node)


# first, for -m and xdist look at the marks
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            # with --dist loadgroup one worker runs them all; each would start a cluster of its own
            item.add_marker(pytest.mark.xdist_group("slurm"))


@contextlib.contextmanager
def running_cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    """A cluster in an empty folder, with SLURM_TEST_* settings; skips the test where none can be made."""
    environ = os.environ | settings | {"SLURM_TEST_DIR": str(folder)}
    up = subprocess.run(
        [TESTCLUSTER, "up"], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if up.returncode == UNFIT_MACHINE and os.environ.get("LATENTBRIDGE_REQUIRE_SLURM") != "1":
        pytest.skip(f"NOT TESTED on real SLURM: {up.stderr.strip()}")
    if up.returncode:
        pytest.fail(f"no test cluster (exit {up.returncode}): {up.stderr.strip()}", pytrace=False)
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.testcluster("down", "--purge")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of four pretend GPUs, with accounting; SLURM_CONF leads to it until the session ends."""
    with running_cluster(tmp_path_factory.mktemp("slurm")) as made, pytest.MonkeyPatch.context() as patch:
        # pytest may itself run in a job
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(made.conf))
        yield made


@pytest.fixture(scope="session")
def cluster_without_accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A second cluster, of one node, where sacct knows nothing; only its own `run` leads to it."""
    settings = {"SLURM_TEST_ACCT": "0", "SLURM_TEST_NODES": "1"}
    with running_cluster(tmp_path_factory.mktemp("bare"), **settings) as made:
        yield made
