"""Train one small language model with mixtures of experts, and see what its routers do.

torchrun --nproc_per_node 1 jobs/routing_bench.py --config RUN/config.yaml
Two CPU cores: a minute for a cell of configs/routing_demo.yaml. Beside its metrics it writes
RUN/experts.jsonl (loads) and RUN/specialisation.json (what each expert takes).
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.lm.mixture_config import MixtureLmConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.lm.mixture import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of mixtures must prove before it is launched."""
    from latentbridge.lm.mixture_rehearsal import MixtureRehearsal

    return MixtureRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
