"""Diagrams of decoders that are trained from scratch: dense, mixtures, and those with layers of two kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentbridge.audit.figures.boxes import Diagram
from latentbridge.layer_routing.config import mixer_pattern

Config = dict[str, Any]
# experts that are drawn of many: the first ones and the last
_EXPERTS = 4


def _opening(made: Diagram, config: Config, x: float = 0.5, width: float = 0.94) -> None:
    """Two levels of a decoder: what it reads, and its embeddings."""
    model = config["model"]
    positions = {"learned": ", and learned positions", "rope": ", rotary positions"}
    embedding = f"embedding of width {model['dim']}{positions.get(model.get('positions'), '')}"
    _reading(made, _blocks_of(config), embedding, x, width)


def _reading(made: Diagram, text: str, embedding: str, x: float = 0.5, width: float = 0.94) -> None:
    made.box("read", 0, text, "data", x, width)
    made.box("embedding", 1, embedding, "trained", x, width)
    made.arrow("read", "embedding")


def _blocks_of(config: Config) -> str:
    text = config["text"]
    return f"{text.get('name')}: {text['context']} tokens ({text.get('tokenizer')})"


def _ending(
    made: Diagram, config: Config, level: int, before: Sequence[str], x: float = 0.5, width: float = 0.94
) -> None:
    tied = ", the embedding again" if config["model"].get("tied") else ""
    made.box("head", level, f"norm and output layer{tied}: the next token", "trained", x, width)
    for start in before:
        made.arrow(start, "head", always=len(before) == 1)


def dense(config: Config) -> Diagram | None:
    """None for a decoder whose layers are of another kind, of which not all is told."""
    if config.get("mixture") or config.get("mixers"):
        return None
    made = Diagram()
    model = config["model"]
    _opening(made, config)
    inner = model["ffn_mult"] * model["dim"]
    _block(
        made,
        f"causal softmax attention, {model['heads']} heads",
        f"feed-forward layer: {model['activation']}, {model['dim']} to {inner} to {model['dim']}",
    )
    made.frame("layers", 2, 3, f"{model['layers']} layers; {model.get('norm')} before either")
    _ending(made, config, 4, ["ffn"])
    return made


# of the families whose layout `pretrain` writes: activation, norm and positions
_FAMILIES = {
    "llama": ("SwiGLU", "RMSNorm", "rotary positions"),
    "gpt2": ("GELU", "LayerNorm", "learned positions"),
}


def pretrained(config: Config) -> Diagram | None:
    """A model of one of two known families, trained on problems; None for another family."""
    model = config["model"]
    if model["family"] not in _FAMILIES:
        return None
    activation, norm, positions = _FAMILIES[model["family"]]
    made = Diagram()
    text = f"{config['problems']['name']} with their solutions ({model.get('tokenizer')})"
    _reading(made, text, f"embedding of width {model['width']}, {positions}")
    shared = f", keys and values of {model['kv_heads']}" if model.get("kv_heads") else ""
    _block(
        made,
        f"causal softmax attention, {model['heads']} heads{shared}",
        f"feed-forward layer: {activation}, {model['width']} to {model['ffn']} to {model['width']}",
    )
    made.frame("layers", 2, 3, f"{model['layers']} layers of {model['family']}; {norm} before either")
    weight = (
        f"; the question's tokens weigh {config['question_weight']}" if "question_weight" in config else ""
    )
    made.box("head", 4, f"norm and output layer, the embedding again: the next token{weight}", "trained")
    made.arrow("ffn", "head")
    return made


def olmoe(config: Config) -> Diagram:
    """A mixture in the layout of OLMoE."""
    made = Diagram()
    model = config["model"]
    _reading(made, _blocks_of(config), f"embedding of width {model['width']}, rotary positions")
    made.box("attention", 2, f"causal softmax attention, {model['heads']} heads", "trained")
    made.arrow("embedding", "attention")
    chosen = f"router: {model['top_k']} of {model['num_experts']} experts a token; dropless"
    size = f"SwiGLU, {model['width']} to {model.get('expert_width')} to {model['width']}"
    _experts(made, model["num_experts"], model["top_k"], chosen, size)
    made.frame("layers", 2, 5, f"{model['layers']} layers; RMSNorm before attention and router")
    made.box("head", 6, "norm and output layer, the embedding again: the next token", "trained")
    made.arrow("sum", "head")
    return made


def _block(made: Diagram, attention: str, ffn: str) -> None:
    """Two levels: what reads, and the layer behind it."""
    made.box("attention", 2, attention, "trained")
    made.arrow("embedding", "attention")
    made.box("ffn", 3, ffn, "trained")
    made.arrow("attention", "ffn")


def mixture(config: Config) -> Diagram:
    """Experts of which a router chooses some for each token."""
    made = Diagram()
    model, mixture = config["model"], config["mixture"]
    router, dispatch, experts = mixture["router"], mixture.get("dispatch") or {}, mixture["num_experts"]
    _opening(made, config)
    made.box("attention", 2, f"causal softmax attention, {model['heads']} heads", "trained")
    made.arrow("embedding", "attention")
    padded = f", capacity factor {dispatch['capacity_factor']}" if dispatch.get("kind") == "padded" else ""
    network = "" if router["strategy"] == "hash" else f", {router.get('network')}"
    chosen = f"router {router['strategy']}{network}: {router['top_k']} of {experts} experts a token"
    inner = model.get("ffn_mult", 4) * model["dim"]
    gated = "gated " if mixture.get("gated") else ""
    size = f"{gated}{model.get('activation')}, {model['dim']} to {inner} to {model['dim']}"
    role = "data" if router["strategy"] == "hash" else "chooses"
    _experts(made, experts, router["top_k"], f"{chosen}; {dispatch.get('kind')}{padded}", size, role)
    made.frame("layers", 2, 5, f"{model['layers']} layers; {model.get('norm')} before attention and router")
    _ending(made, config, 6, ["sum"])
    return made


def _experts(made: Diagram, count: int, top_k: int, chosen: str, size: str, role: str = "chooses") -> None:
    """Three levels: who chooses, the experts, and their sum."""
    made.box("router", 3, chosen, role)
    made.arrow("attention", "router")
    shown = _expert_boxes(made, 4, count)
    made.arrow("router", *shown, always=top_k == count)
    made.box("sum", 5, f"weighted sum; an expert: {size}", "data")
    for name in shown:
        made.arrow(name, "sum", always=top_k == count)


def _expert_boxes(made: Diagram, level: int, count: int) -> list[str]:
    """The first experts, a gap and the last; all where they are few."""
    labels = [str(number) for number in range(1, count + 1)]
    if count > _EXPERTS:
        labels = [*labels[: _EXPERTS - 1], "…", labels[-1]]
    width = 0.94 / len(labels)
    for place, label in enumerate(labels):
        text = label if label == "…" else f"expert {label}"
        x = 0.03 + width * (place + 0.5)
        made.box(f"expert_{place}", level, text, "data" if label == "…" else "trained", x, 0.9 * width)
    return [f"expert_{place}" for place, label in enumerate(labels) if label != "…"]


def layer_routing(config: Config) -> Diagram:
    """Layers that read by gated delta, by softmax, or as a token is routed."""
    made = Diagram()
    mixers = mixer_pattern(config["mixers"])
    routed = "routed" in mixers
    # the router stands at the right of the layers for which it decides
    x, width = (0.36, 0.66) if routed else (0.5, 0.94)
    _opening(made, config, x, width)
    before = ["embedding"]
    for layer, mixer in enumerate(mixers):
        names = _layer(made, layer, mixer, x, width)
        for start in before:
            made.arrow(start, *names, always=len(names) == 1 and len(before) == 1)
        before = names
    if routed:
        made.box("router", 3, "router, by token", "chooses", 0.845, 0.27)
        made.arrow("layer_0", "router")
        made.arrow("router", *(f"layer_{layer}_1" for layer, mixer in enumerate(mixers) if mixer == "routed"))
    made.frame("layers", 2, 1 + len(mixers), _layers_text(config, mixers))
    _ending(made, config, 2 + len(mixers), before, x, width)
    return made


_MIXER_ROLES = {"gdn": "trained", "softmax": "other"}


def _layer(made: Diagram, layer: int, mixer: str, x: float, width: float) -> list[str]:
    """One level: what reads in a layer, or the two among which tokens choose."""
    names = {"gdn": "gated delta", "softmax": "softmax attention"}
    if mixer != "routed":
        made.box(f"layer_{layer}", 2 + layer, f"layer {layer}: {names[mixer]}", _MIXER_ROLES[mixer], x, width)
        return [f"layer_{layer}"]
    for side, (role, text) in enumerate(
        (
            (_MIXER_ROLES["gdn"], f"layer {layer}: gated delta"),
            (_MIXER_ROLES["softmax"], "or softmax attention"),
        )
    ):
        own_x = x + width * (side - 0.5) / 2
        made.box(f"layer_{layer}_{side}", 2 + layer, text, role, own_x, 0.47 * width)
    return [f"layer_{layer}_0", f"layer_{layer}_1"]


def _layers_text(config: Config, mixers: Sequence[str]) -> str:
    model, gdn = config["model"], config.get("gdn") or {}
    inner = config.get("ffn_width") or model.get("ffn_mult", 4) * model["dim"]
    parts = [
        f"after each mixer SwiGLU, {model['dim']} to {inner} to {model['dim']}; "
        f"{model.get('norm')} before either"
    ]
    if {"gdn", "routed"} & {*mixers}:
        heads = gdn.get("heads") or model["heads"]
        parts.append(
            f"gated delta: {heads} heads, keys {gdn.get('key_width')}, values {gdn.get('value_width')} wide"
        )
    if {"softmax", "routed"} & {*mixers}:
        parts.append(f"softmax: {model['heads']} heads")
    return "; ".join(parts)
