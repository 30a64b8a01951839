"""What a result may depend on beside its code: packages, and the cards of a node."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

# where the driver tells of each card, by its address on the bus; nothing has to be started or imported
_DRIVER = Path("/proc/driver/nvidia/gpus")


def versions() -> dict[str, str | None]:
    """Versions of what a result may depend on."""
    found: dict[str, str | None] = {"python": platform.python_version(), "executable": sys.executable}
    for package in ("latentbridge", "torch", "deepspeed", "accelerate", "transformers", "submitit", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def packages() -> list[str]:
    """Every installed distribution with its version, sorted."""
    found = {f"{dist.name}=={dist.version}" for dist in metadata.distributions()}
    return sorted(found, key=str.lower)


def gpu_models(driver: Path = _DRIVER) -> list[str]:
    """What the cards of this machine are called, one name a card; empty where the driver says nothing."""
    told = [file.read_text(errors="replace") for file in sorted(driver.glob("*/information"))]
    fields = [line.partition(":") for text in told for line in text.splitlines()]
    return [value.strip() for key, _, value in fields if key.strip() == "Model"]
