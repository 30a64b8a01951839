"""The only place that talks to SLURM: one function a question, each one call; silence is a SchedulerError."""

from __future__ import annotations

import os
import re
import subprocess
import time

from latentbridge.errors import SchedulerError

# a busy controller answers late; a dead one makes its tools give up by themselves after this long or less
PATIENCE_S = 60
_SILENCE = re.compile(
    r"time[d ]*out|unable to contact|connect|communication|zero bytes|temporarily|message (receive|send)"
    r"|standby mode",
    re.IGNORECASE,
)
# also said for some seconds after a controller has started, before its nodes have told what they have
NO_SUCH_NODES = "Requested node configuration is not available"
SETTLE_S, SETTLE_TRIES = 3, 5
_FULL = re.compile(r"(Max|Grp)SubmitJob")


def call(*argv: str, patience_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's tools; its exit code is for the caller to judge.

    SchedulerError where the tool is missing or does not return in time.
    """
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience_s,
            check=False,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(
            f"{argv[0]} did not answer ({error}); run the same command again later"
        ) from None


def _environment() -> dict[str, str]:
    """Ours, less what would change what the tools print, or hand a surrounding job on to those we submit."""
    inside = "SLURM_JOB_ID" in os.environ  # elsewhere SBATCH_ACCOUNT and its like are what the user wants
    dropped = ("SQUEUE_", "SACCT_", *(("SLURM_", "SBATCH_", "SRUN_") if inside else ()))
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(dropped) or key.startswith("SLURM_CONF")
    }
    # else the indices of a large array are cut off after 64 characters
    return kept | {"SLURM_BITSTR_LEN": "0"}


def call_settled(*argv: str, patience_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """The same for sbatch, whose complaint about nodes that are not there counts only if it persists."""
    answer = call(*argv, patience_s=patience_s)
    for _ in range(SETTLE_TRIES):
        if answer.returncode == 0 or NO_SUCH_NODES not in answer.stderr:
            break
        time.sleep(SETTLE_S)
        answer = call(*argv, patience_s=patience_s)
    return answer


def is_silence(said: str) -> bool:
    """Whether a tool's complaint means that the controller did not answer, as opposed to said no."""
    return bool(_SILENCE.search(said))


def is_full(said: str) -> bool:
    """Whether sbatch's complaint is about how much of this user is queued, and not about the request."""
    return bool(_FULL.search(said))


def ask(*argv: str) -> list[str]:
    """The lines that one of SLURM's tools prints; SchedulerError where it fails."""
    answer = call(*argv)
    if answer.returncode != 0:
        said = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise SchedulerError(f"{argv[0]} failed: {said}; run the same command again later")
    return answer.stdout.splitlines()
