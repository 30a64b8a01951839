"""A language model of gated-delta, softmax and routed layers, as the loop sees it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentbridge.job import Run
from latentbridge.layer_routing.config import COUNTED, LayerRoutingConfig
from latentbridge.layer_routing.metrics import Split, split_metrics, summed
from latentbridge.layer_routing.model import Kernels, build_model, unmet
from latentbridge.lm.mixture_config import temperature_at
from latentbridge.lm.model import Scored
from latentbridge.lm.specialisation import Choices, TokenClasses, describe, information_metrics
from latentbridge.lm.train import LanguageModeling
from latentbridge.metric import Metric
from latentbridge.nn.backend import Backend
from latentbridge.nn.balance import balance_loss
from latentbridge.nn.gated_delta_backend import choose_backend, rule_of
from latentbridge.nn.layer_routing import CHOICES, LayerRouter, RoutedDecoder
from latentbridge.nn.short_convolution_backend import choose_convolution, convolution_of
from latentbridge.nn.sorted_attention import plain
from latentbridge.nn.sorted_attention_backend import choose_reader, reader_of
from latentbridge.rundir import write_json
from latentbridge.train import distributed
from latentbridge.train.flops import matrix_size
from latentbridge.train.loop import FINAL, LossTerm, begin, fit


class Seen(NamedTuple):
    """One batch of an evaluation by routed layer, of the test text with who took each token."""

    layers: list[Split]
    choices: Choices | None


def choose_backends(
    config: LayerRoutingConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Backend]:
    """By its name in the manifest, what computes a part of the model here, and why."""
    model, gdn = config.model, config.gdn
    found = {
        "gated_delta": choose_backend(device, dtype, (gdn.key_width, gdn.value_width)),
        "short_convolution": choose_convolution(device, dtype),
    }
    if config.routed and config.routing.compute == "sparse":
        found["routed_softmax"] = choose_reader(device, dtype, model.dim // model.heads, config.text.context)
    return found


class LayerRoutingLm(LanguageModeling):
    """The workload of static hybrids and of routed models: they differ in `mixers` alone."""

    config: LayerRoutingConfig

    def __init__(self, config: LayerRoutingConfig, run: Run) -> None:
        super().__init__(config, run)
        decoder: Any = self.model.decoder
        self._router: LayerRouter | None = decoder.router if isinstance(decoder, RoutedDecoder) else None
        self._temperature: float | None = None
        self._splits: dict[str, list[Split]] = {}

    def make_model(self) -> nn.Module:
        precision = torch.bfloat16 if self.config.train.precision == "bf16" else torch.float32
        backends = choose_backends(self.config, self.device, precision)
        manifest = self._run.folder.read_manifest()
        # a folder made by hand has none
        if self._run.is_main and manifest:
            told = {name: backend._asdict() for name, backend in backends.items()}
            self._run.folder.write_manifest({**manifest, **told})
        routed = backends.get("routed_softmax")
        reader = plain if routed is None else reader_of(routed.name)
        rule = rule_of(backends["gated_delta"].name)
        kernels = Kernels(rule, convolution_of(backends["short_convolution"].name), reader)
        return build_model(self.config, self.corpus.vocab_size, kernels)

    def matrices_per_token(self) -> int:
        """Where only the taken mixer is computed, as if half of the tokens took each."""
        spared = sum(sum(sizes) // 2 for sizes in unmet(self.model))
        return matrix_size(self.model) - (spared if self._is_sparse else 0)

    @property
    def _is_sparse(self) -> bool:
        return self.config.routing.compute == "sparse"

    def begin_update(self, step: int) -> None:
        """Set the temperature, which the last update has come to the end of."""
        if self._router is None:
            return
        found = temperature_at(self.config.routing.temperature, step, self.config.train.steps)
        if found != self._temperature:
            self._router.temperature.fill_(found)
        self._temperature = found

    def extra_losses(self, extras: list[Any]) -> dict[str, LossTerm]:
        """Logged apart, whatever they weigh: a published loss of 4.43 was 3.92 and the balance of routes."""
        if self._router is None:
            return {}
        routing = self.config.routing
        # (L, 2), over all ranks: what is balanced are their micro-batches together
        counts = distributed.global_sum(torch.stack([told["counts"] for told in extras]))
        share = (counts[:, 0] / counts.sum(dim=-1)).mean()
        # what weighs nothing is a figure for the log
        terms = {
            "temperature": LossTerm(self._router.temperature, 0.0),
            "gdn_share": LossTerm(share, 0.0),
        }
        if routing.balance_weight:
            probs = torch.stack([told["mean_probs"] for told in extras])
            terms["balance"] = LossTerm(balance_loss(counts, probs).mean(), routing.balance_weight)
        if routing.z_weight:
            terms["router_z"] = LossTerm(torch.stack([told["z"] for told in extras]).mean(), routing.z_weight)
        return terms

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """Those of `LanguageModeling`, and who takes what in either text; RUN/routing.json has the last.

        The final one also tells the number of weights, and in RUN/specialisation.json which classes of tokens
        take which mixer.
        """
        self._splits = {}
        metrics = super().evaluate(model, step, label)
        parameters = self._parameters(self._splits.get("test" if label == FINAL else "val", []))
        if label == FINAL:
            metrics |= {name: Metric(value=value, n=1) for name, value in parameters.items()}
        if self._run.is_main:
            write_json(self._run.folder.path / "routing.json", self._told(step, label, parameters))
        return metrics

    def _told(self, step: int, label: str, parameters: dict[str, float]) -> dict[str, Any]:
        routed = [str(layer) for layer in self.config.routed]
        layers = {
            text: dict(zip(routed, (split.as_record() for split in found), strict=True))
            for text, found in self._splits.items()
        }
        pattern = list(self.config.pattern)
        return {"step": step, "label": label, "mixers": pattern, "layers": layers, "parameters": parameters}

    def _parameters(self, splits: list[Split]) -> dict[str, float]:
        """All, and on average those that a token meets: embeddings are among both."""
        total = float(sum(parameter.numel() for parameter in self.model.parameters()))
        spared = 0.0
        if self._is_sparse:
            for split, (by_gdn, by_softmax) in zip(splits, unmet(self.model), strict=True):
                spared += split.gdn_share * by_gdn + (1 - split.gdn_share) * by_softmax
        return dict(zip(COUNTED, (total, total - spared), strict=True))

    @cached_property
    def _classes(self) -> TokenClasses:
        return TokenClasses(self.corpus.token_texts())

    def observe(self, scored: Scored, blocks: Tensor, prefix: str) -> Seen:
        if self._router is None:
            return Seen([], None)
        layers = [_split(told) for told in scored.extras]
        return Seen(layers, self._choices(scored.extras, blocks[:, :-1]) if prefix == "test" else None)

    def _choices(self, extras: list[dict[str, Tensor]], read: Tensor) -> Choices:
        first = [told["softmax"].flatten().long().cpu().numpy() for told in extras]
        sent = [layer[:, None] == range(len(CHOICES)) for layer in first]
        return self._classes.choices(read.cpu().numpy(), first, sent)

    def extra_metrics(self, observed: list[Any], prefix: str) -> dict[str, Metric]:
        if self._router is None:
            return {}
        self._splits[prefix] = summed([seen.layers for seen in observed])
        metrics = split_metrics(self._splits[prefix], self.config.routed, prefix)
        if prefix == "test":
            described = describe([seen.choices for seen in observed], self._classes.texts)
            if self._run.is_main:
                write_json(self._run.folder.path / "specialisation.json", described)
            metrics |= information_metrics(described, prefix)
        return metrics


def _split(told: dict[str, Tensor]) -> Split:
    gdn, softmax = told["counts"].tolist()
    return Split(gdn, softmax, float(told["entropy"]))


def train(config: LayerRoutingConfig, run: Run) -> dict[str, Any] | None:
    """Train a language model whose layers, or tokens, read by gated delta or softmax."""
    begin(config, run)
    return fit(LayerRoutingLm(config, run), config, run)
