"""The torchrun line of one run and the environment it starts in, for launcher, worker and dry run alike."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

from latentbridge.launch.cluster import Cluster, Resources

# torchrun dies of signals it does not know; these reach it on clusters that signal every process of a step
HANDLED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
# below the kernel's ephemeral range, from which other programs are given ports at any moment
PORTS = range(20000, 30000)
# ranks may take this long to save after a request to stop, before they are killed; torchrun's own is 30 s
SAVE_GRACE_S = 600
RENDEZVOUS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def torchrun_command(
    job: Path,
    config: Path,
    resources: Resources,
    *,
    node: int = 0,
    head: str = "127.0.0.1",
    port: int | None = None,
    scratch: str | None = None,
) -> list[str]:
    """argv that starts this node's ranks of a run; port None (dry run): torchrun picks one itself.

    scratch: a folder for what torchrun writes beside what ranks say; None: it makes one, and leaves it behind
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={resources.gpus_per_node}"]
    if port is None and resources.nodes == 1:
        command.append("--standalone")
    else:
        command += [f"--nnodes={resources.nodes}", f"--node-rank={node}"]
        command += [f"--master-addr={head}", f"--master-port={port or 'PORT'}"]
    if scratch is not None:
        command.append(f"--log-dir={scratch}")
    return [*command, f"--signals-to-handle={HANDLED_SIGNALS}", str(job), "--config", str(config)]


def free_port() -> int:
    """A port free on this host now, drawn at random so that jobs starting together do not collide."""
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(
        f"none of 200 ports tried in {PORTS.start}..{PORTS.stop - 1} is free on {socket.gethostname()}"
    )


def head_address(nodes: int) -> str:
    """A name of this host that other nodes can resolve; on one node the loopback will do."""
    if nodes == 1:
        return "127.0.0.1"
    for name in (os.environ.get("SLURMD_NODENAME"), socket.gethostname()):
        try:
            if name and socket.gethostbyname(name):
                return name
        except OSError:
            continue
    return socket.gethostname()


def child_environment(cluster: Cluster, code: Path, threads: int) -> dict[str, str]:
    """What the ranks inherit: ours without another job's rendezvous, the launch's code before any other."""
    kept = {key: value for key, value in os.environ.items() if key not in RENDEZVOUS_VARIABLES}
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")])),
        # the working directory must not shadow the copy
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        # else 32 a run: as many processes as 20 runs side by side have no cores for
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVE_GRACE_S),
    }
    return kept | fixed | cluster.environment
