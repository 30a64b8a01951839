"""Train one small language model whose layers, or tokens, read by gated delta or by softmax attention.

torchrun --nproc_per_node 1 jobs/layer_routing.py --config RUN/config.yaml
One CPU core: 20 s for a run of configs/layer_routing_demo.yaml. Beside its metrics it writes
RUN/routing.json (who takes which mixer) and, of routed models, RUN/specialisation.json (which tokens do).
"""

from __future__ import annotations

from typing import Any

from latentbridge import job
from latentbridge.layer_routing.config import LayerRoutingConfig as Config


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Hand over to the workload; torch is imported only now, on the node."""
    from latentbridge.layer_routing.train import train as fit

    return fit(config, run)


def rehearsal() -> Any:
    """What a plan of routed layers must prove before it is launched."""
    from latentbridge.layer_routing.rehearsal import LayerRoutingRehearsal

    return LayerRoutingRehearsal()


if __name__ == "__main__":
    job.main(Config, train)
