"""Train one small language model of the toy pair from scratch.

torchrun --nproc_per_node 1 jobs/pretrain.py --config RUN/config.yaml
One H100: 5 min for both models of configs/models.yaml side by side. Writes RUN/export.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.pretrain.config import PretrainConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.pretrain.train import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of language models must prove before it is launched."""
    from latentbridge.pretrain.rehearsal import PretrainRehearsal

    return PretrainRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
