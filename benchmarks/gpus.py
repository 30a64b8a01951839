"""The GPUs that a benchmark is about to use."""

from __future__ import annotations

import argparse
import subprocess
import time


def describe_and_list(doc: str | None) -> list[str]:
    """Answer --help with a script's docstring; print and return the names of the GPUs here, at least one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        gpus = []
    if not gpus:
        parser.error("nvidia-smi shows no GPU here, and this is about GPUs; run it on a node that has one")
    print(f"{len(gpus)} x {gpus[0]}, {time.strftime('%Y-%m-%d')}", flush=True)
    return gpus
