"""Train one dense language model on a text, and score it on two texts that it has not read.

torchrun --nproc_per_node 1 jobs/language_model.py --config RUN/config.yaml
Two CPU cores: half a minute for configs/language_model/tiny.yaml. Writes RUN/text.json beside its metrics.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.lm.config import LmConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.lm.train import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of language models must prove before it is launched."""
    from latentbridge.lm.rehearsal import LmRehearsal

    return LmRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
