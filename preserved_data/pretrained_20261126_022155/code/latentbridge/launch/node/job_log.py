"""What a job printed beside its ranks: the words of its batch shell, of srun, and of a worker that failed."""

from __future__ import annotations

from pathlib import Path

from latentbridge.launch.node.causes import tail_of

# printed by the batch shell to the error log, which all starts of a job share
START_LINE = "--- the job starts ---"


def job_logs(launch: Path, token: str, task: str) -> list[Path]:
    """The error logs of one task of a submission, by its id as scontrol takes it."""
    return sorted((launch / "slurm" / token).glob(f"{task}_*.err"))


def words_of(launch: Path, token: str, task: str) -> str:
    """What a task printed since its latest start."""
    return "\n".join(tail_of(log) for log in job_logs(launch, token, task)).rpartition(START_LINE)[2]


def last_line(said: str) -> str:
    """The last line that is not srun's own account of the end; empty where there is none."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("srun: ")]
    return lines[-1].strip() if lines else ""
