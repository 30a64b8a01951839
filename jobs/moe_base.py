"""Train one small mixture of OLMoE's family on a text, for adapters to be tried on.

torchrun --nproc_per_node 1 jobs/moe_base.py --config RUN/config.yaml
One CPU core: 8 min for configs/moe_base.yaml. Writes RUN/export.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.perft.config import MoeBaseConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.perft.base import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of such models must prove before it is launched."""
    from latentbridge.perft.base_rehearsal import MoeBaseRehearsal

    return MoeBaseRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
