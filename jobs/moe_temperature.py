"""Train one language model with mixtures of experts at a routing temperature, by Muon and AdamW.

torchrun --nproc_per_node 1 jobs/moe_temperature.py --config RUN/config.yaml
One CPU core: a quarter of a minute for a run of configs/temperature_demo.yaml. Writes RUN/experts.jsonl.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.lm.mixture_config import MixtureLmConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload that `routing_bench` has too; torch is imported only now, on the node."""
    from latentbridge.lm.mixture import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of mixtures must prove before it is launched."""
    from latentbridge.lm.mixture_rehearsal import MixtureRehearsal

    return MixtureRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
