"""Train one bridge from a frozen source model to a frozen target model, and evaluate it with every control.

torchrun --nproc_per_node 4 jobs/translator.py --config RUN/config.yaml
configs/translator/phase1.yaml: four H100 80 GB; demo_gpu.yaml: one H100; demo.yaml: one CPU core, a minute.
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.translator.config import TranslatorConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.translator.train import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of translators must prove before it is launched."""
    from latentbridge.translator.rehearsal import TranslatorRehearsal

    return TranslatorRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
