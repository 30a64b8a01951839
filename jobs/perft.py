"""Train adapters beside the frozen experts of one mixture: routed, embedded in the experts, or shared.

torchrun --nproc_per_node 1 jobs/perft.py --config RUN/config.yaml
configs/perft/olmoe.yaml: one H100 or H200, OLMoE in bf16; demo.yaml: one CPU core, half a minute.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.perft.config import PerftConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.perft.train import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of adapters must prove before it is launched."""
    from latentbridge.perft.rehearsal import PerftRehearsal

    return PerftRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
