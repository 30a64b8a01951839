"""The errors a user can see.

LatentbridgeError
├── ConfigError         a file says something impossible             exit code 2
├── PreflightError      the plan is sound, but cannot run here       exit code 2
├── RunError            a run folder or checkpoint is not what its name promises   exit code 1
│   └── DamageError     one of its files is missing, or holds something else
├── SchedulerError      SLURM refused or could not be reached        exit code 75
└── LockedError         another launcher holds this launch           exit code 75
"""

from __future__ import annotations


class LatentbridgeError(Exception):
    """Something a person can put right; its text says where, what, the rule and the remedy."""

    exit_code = 1


class ConfigError(LatentbridgeError):
    """A YAML file, or a value in it, breaks a rule."""

    exit_code = 2


class PreflightError(LatentbridgeError):
    """A valid plan that this machine or cluster cannot carry out."""

    exit_code = 2


class RunError(LatentbridgeError):
    """A run folder, archive or checkpoint is missing, damaged or of another run."""

    exit_code = 1


class DamageError(RunError):
    """A file of a run, as opposed to the disk that it is on, is not what it should be."""


class SchedulerError(LatentbridgeError):
    """The scheduler refused a request, or did not answer."""

    exit_code = 75


class LockedError(LatentbridgeError):
    """Another process is working on the same launch."""

    exit_code = 75
