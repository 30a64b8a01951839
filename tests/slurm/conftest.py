"""A real SLURM cluster for the tests of this folder: started once a session, in a folder of its own.

pytest tests/slurm --torture   only what is marked `repeats(n)` or `torture`, n times, with a report
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import wait_for
from slurm_launching import PROFILE, STAND_IN
from torture import Torture

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

    def said_of(self, pattern: str, most: int = 80) -> str:
        """The last lines of its daemons' logs that match a pattern, for the message of a test that fails."""
        logs = sorted((self.folder / "log").glob("*.log"))
        lines = [
            f"{log.name}: {line}" for log in logs for line in log.read_text(errors="replace").splitlines()
        ]
        return "\n".join([line for line in lines if re.search(pattern, line, re.IGNORECASE)][-most:])

    def crash(self, node: str) -> None:
        self.testcluster("crash", node)

    def restore(self, node: str) -> None:
        self.testcluster("restore", node)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="repeat what is marked so; hours")
    parser.addoption("--torture-report", type=Path, help="file of its report (default: under benchmarks/)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "repeats(n): runs n times with --torture, else once")
    config.addinivalue_line("markers", "torture: runs with --torture only")
    if config.getoption("torture", False):
        config.pluginmanager.register(Torture(config.getoption("torture_report")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("repeats")
    if mark and metafunc.config.getoption("torture", False):
        metafunc.fixturenames.append("repeat")
        metafunc.parametrize("repeat", range(mark.args[0]))


# first, for -m and xdist look at the marks
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("torture", False):
        items[:] = [item for item in items if not item.get_closest_marker("torture")]
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
    if "PYTEST_XDIST_WORKER" in os.environ and "@slurm" not in os.environ["PYTEST_CURRENT_TEST"]:
        pytest.fail("each xdist worker would start its own clusters: use --dist loadgroup, pytest below 9.2")
    with running_cluster(tmp_path_factory.mktemp("slurm")) as made, pytest.MonkeyPatch.context() as patch:
        # pytest may itself run in a job
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(made.conf))
        yield made


@pytest.fixture(scope="session")
def further_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Make a further cluster, without accounting, for the session; only its own `run` leads to it."""
    with contextlib.ExitStack() as stack:

        def make(name: str, **settings: int) -> Cluster:
            words = {f"SLURM_TEST_{key.upper()}": str(value) for key, value in settings.items()}
            folder = tmp_path_factory.mktemp(name)
            return stack.enter_context(running_cluster(folder, SLURM_TEST_ACCT="0", **words))

        yield make


@pytest.fixture(scope="session")
def cluster_without_accounting(further_cluster: Callable[..., Cluster]) -> Cluster:
    """One node, and ended jobs are forgotten after 5 s."""
    return further_cluster("bare", nodes=1, min_job_age=5)


@pytest.fixture
def slurm_project(cluster: Cluster, project: Path) -> Iterator[Path]:
    """The counting project with the test profile; its jobs leave the queue before the next test."""
    (project / "slurm" / "test.yaml").write_text(PROFILE)
    yield project
    cluster.run("scancel", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "--noheader").stdout.strip())


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `torch.distributed.run` starts one rank at once."""
    folder = tmp_path_factory.mktemp("torchrun")
    package = folder / "torch" / "distributed"
    package.mkdir(parents=True)
    for init in (package.parent, package):
        (init / "__init__.py").touch()
    (package / "run.py").write_text(STAND_IN)
    return folder


@pytest.fixture
def profile(slurm_project: Path, stand_in: Path) -> Callable[..., None]:
    """Write the test profile anew, with a stand-in for torchrun and further settings."""

    def write(**settings: str | int) -> None:
        kept = [line for line in PROFILE.splitlines() if line.split(":")[0] not in settings]
        lines = [f"{key}: {value}" for key, value in settings.items()]
        setup = f"setup: ['export PYTHONPATH={stand_in}']"
        (slurm_project / "slurm" / "test.yaml").write_text("\n".join([*kept, *lines, setup]) + "\n")

    write()
    return write


@pytest.fixture
def preempting(
    cluster: Cluster,
) -> Callable[[int, bool], contextlib.AbstractContextManager[Callable[[], object]]]:
    """A site with so much grace, with or without the user's signal; yields a way to preempt `low`."""
    words = ["--partition=high", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap=true"]

    @contextlib.contextmanager
    def site(grace_s: int, signalled: bool) -> Iterator[Callable[[], object]]:
        conf = cluster.conf.read_text()
        if signalled:
            cluster.conf.write_text(conf + "SlurmctldParameters=preempt_send_user_signal\n")
            cluster.run("scontrol", "reconfigure")
        cluster.run("scontrol", "update", "PartitionName=low", f"GraceTime={grace_s}")
        try:
            yield lambda: cluster.run("sbatch", *words)
        finally:
            cluster.conf.write_text(conf)
            cluster.run("scontrol", "reconfigure")
            cluster.run("scontrol", "update", "PartitionName=low", "GraceTime=0")

    return site
