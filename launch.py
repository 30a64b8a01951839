"""One YAML file of ablations to finished, evaluated, preserved and summarised runs.

python launch.py ablations.yaml --dry-run      # what would run, and the exact sbatch and torchrun lines
python launch.py ablations.yaml                # run it: on SLURM where sbatch is, else on this machine
"""

import sys

try:
    from latentbridge.launch.cli import launch_main
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed for this python: `make .venv/.ready`, then `. .venv/bin/activate`"
    )

if __name__ == "__main__":
    launch_main()
