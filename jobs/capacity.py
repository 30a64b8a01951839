"""Measure what a capacity limit drops, and how fast tokens are routed, seated and packed under it.

torchrun --nproc_per_node 1 jobs/capacity.py --config RUN/config.yaml
One CPU core: seconds for a run of configs/capacity_demo.yaml. Writes RUN/capacity.jsonl.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.capacity.config import CapacityConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the bench; torch is imported only now, on the node."""
    from latentbridge.capacity.bench import measure

    return measure(config, run)


def rehearsal() -> Any:
    """What a plan of the bench must prove before it is launched."""
    from latentbridge.capacity.rehearsal import CapacityRehearsal

    return CapacityRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
