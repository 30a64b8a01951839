"""latentbridge: ablation specs to SLURM jobs, and numbers that mean what they say."""

__version__ = "0.1.0"
