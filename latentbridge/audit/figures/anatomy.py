"""From an effective config to the diagram of its model, with the numbers and words of the config."""

from __future__ import annotations

from collections.abc import Callable

from latentbridge.audit.figures import decoders
from latentbridge.audit.figures.boxes import Diagram
from latentbridge.audit.figures.decoders import Config
from latentbridge.audit.records import setting

# middles of what stands on the left and on the right, and their widths
_LEFT, _LEFT_WIDTH, _RIGHT, _RIGHT_WIDTH = 0.3, 0.54, 0.79, 0.36


def diagram(config: Config) -> Diagram | None:
    """None where the config is of no model that can be drawn, or lacks what would be told."""
    for needed, draw in _KINDS:
        if all(setting(config, *key.split(".")) is not None for key in needed):
            return draw(config)
    return None


def model_name(config: Config, side: str) -> str:
    """`llama` of `bundled:llama` or `meta/llama`."""
    return str(setting(config, side, "model")).replace(":", "/").rstrip("/").rsplit("/", 1)[-1]


def _translator(config: Config) -> Diagram:
    made = Diagram()
    model = config["model"]
    last = _BRIDGES[model.get("kind", "gated")](made, config)
    made.box("soft", last + 1, f"{model['soft_tokens']} soft tokens", "data", _LEFT, _LEFT_WIDTH)
    told = {"soft_only": "end of the prompt", "soft_plus_text": "the whole prompt"}
    read = told.get(config.get("prompt_mode", ""), "text")
    made.box("text", last + 1, read, "data", _RIGHT, _RIGHT_WIDTH)
    if config.get("injection") == "adapter":
        how = f"times {config.get('adapter_scale')}, added to the text's embeddings"
    else:
        how = "before the text"
    made.box(
        "target", last + 2, f"target {model_name(config, 'target')}, frozen; soft tokens {how}", "frozen"
    )
    made.box("answer", last + 3, "answer", "data", width=0.4)
    made.arrow("bridge_out", "soft")
    made.arrow("soft", "target")
    made.arrow("text", "target")
    made.arrow("target", "answer")
    return made


def _source(made: Diagram, config: Config, beside: str) -> None:
    """Two levels: what the source reads, and what it says of it beside what the bridge starts from."""
    layer = setting(config, "source", "layer")
    states = "last states" if layer == -1 else f"states of layer {layer}"
    made.box("question", 0, "question", "data", _LEFT, 0.4)
    text = f"source {model_name(config, 'source')}, frozen: {states}"
    made.box("source", 1, text, "frozen", _LEFT, _LEFT_WIDTH)
    made.arrow("question", "source")
    if beside:
        made.box("start", 1, beside, "trained", _RIGHT, _RIGHT_WIDTH)


def _gated(made: Diagram, config: Config) -> int:
    model = config["model"]
    _source(made, config, f"{model['soft_tokens']} learned queries of width {model['dim']}")
    heads = f"{model['heads']} heads"
    made.box("self", 2, f"self-attention, {heads}, × gate", "trained", _RIGHT, _RIGHT_WIDTH)
    made.box("cross", 3, f"cross-attention to the source's states, {heads}, × gate", "trained")
    made.box("ffn", 4, "SwiGLU, × gate", "trained")
    gates = f"gates are tanh of one number each, from {model.get('gate_init', 0.0)}"
    made.frame("blocks", 2, 4, f"{model['depth']} blocks of width {model['dim']}; {gates}")
    scale = ", scaled as a row of its embeddings" if model.get("rms_match") else ""
    made.box("bridge_out", 5, f"linear, to the target's width{scale}", "trained")
    for start, end in (("start", "self"), ("self", "cross"), ("source", "cross"), ("cross", "ffn")):
        made.arrow(start, end)
    made.arrow("ffn", "bridge_out")
    return 5


def _dit(made: Diagram, config: Config) -> int:
    model = config["model"]
    dit = model.get("dit") or {}
    _source(made, config, "")
    pool = f"{dit.get('pool', 'mean')} over states, and a feed-forward layer: the condition"
    made.box("condition", 2, pool, "trained", _LEFT, _LEFT_WIDTH)
    made.box("noise", 2, f"noise, {model['soft_tokens']} × {model['dim']}", "data", _RIGHT, _RIGHT_WIDTH)
    made.box("self", 3, f"self-attention, {model['heads']} heads", "trained")
    made.box("ffn", 4, "feed-forward layer", "trained")
    blocks = (
        f"{model['depth']} blocks of width {model['dim']}, shifted, scaled and gated by condition and time"
    )
    made.frame("blocks", 3, 4, blocks)
    in_training, steps = (dit.get(f"{when}_sampling_steps") for when in ("train", "eval"))
    guided = f", guidance {dit['guidance']}" if dit.get("guidance") else ""
    made.box(
        "bridge_out",
        5,
        f"linear: a velocity, followed in {steps} Euler steps, {in_training} in training{guided}",
        "trained",
    )
    for start, end in (("source", "condition"), ("condition", "self"), ("noise", "self"), ("self", "ffn")):
        made.arrow(start, end)
    made.arrow("ffn", "bridge_out")
    return 5


def _passthrough(made: Diagram, config: Config) -> int:
    _source(made, config, "")
    text = f"the last {config['model']['soft_tokens']} states as they are"
    made.box("bridge_out", 2, text, "data", _LEFT, _LEFT_WIDTH)
    made.arrow("source", "bridge_out")
    return 2


_BRIDGES: dict[str, Callable[[Diagram, Config], int]] = {
    "gated": _gated,
    "dit": _dit,
    "passthrough": _passthrough,
}


def _adapters(config: Config) -> Diagram:
    made = Diagram()
    own = config["adapters"]
    variant, rank = (
        own["variant"],
        f"{own.get('kind', 'lora')} of rank {own['rank']}, times {own.get('scale')}",
    )
    left, right, half = 0.26, 0.75, 0.44
    made.box("states", 0, "states that the mixture reads", "data")
    made.box("router", 1, "its router, frozen", "frozen", left, half)
    made.box("experts", 2, "its experts, frozen", "frozen", left, half)
    made.arrow("states", "router")
    made.arrow("router", "experts", always=False)
    if variant == "routed":
        gate = f"gate: {own['top_k']} of {own['num_adapters']} a token"
        made.box("gate", 1, gate, "chooses", right, half)
        text = f"{own['num_adapters']} adapters: {rank}"
    else:
        text = f"in each expert an adapter: {rank}" if variant == "embedded" else f"shared: {rank}"
        if variant == "shared" and (own.get("num_adapters") or 1) > 1:
            text = f"{own['num_adapters']} shared adapters: {rank}"
    made.box("adapters", 2, text, "trained", right, half)
    made.arrow(
        {"routed": "gate", "embedded": "router", "shared": "states"}[variant],
        "adapters",
        always=variant == "shared",
    )
    if variant == "routed":
        made.arrow("states", "gate")
    made.box("sum", 3, "sum, in place of the mixture's output", "data")
    made.arrow("experts", "sum", always=False)
    made.arrow("adapters", "sum", always=variant == "shared")
    made.frame("layers", 1, 3, f"every mixture of {model_name(config, 'frozen')}, which is frozen otherwise")
    made.box("answer", 4, "answer", "data", width=0.4)
    made.arrow("sum", "answer")
    return made


_BRIDGE = (
    "source.model",
    "target.model",
    *(f"model.{key}" for key in ("soft_tokens", "dim", "depth", "heads")),
)
_DECODER = ("model.dim", "model.layers", "model.heads", "text.context")
_ROUTER = ("mixture.num_experts", "mixture.router.strategy", "mixture.router.top_k")
_EXPORTED = ("model.width", "model.layers", "model.heads")
# what a config must tell, and who draws it then: the first that finds all it needs
_KINDS: tuple[tuple[tuple[str, ...], Callable[[Config], Diagram | None]], ...] = (
    (_BRIDGE, _translator),
    ((*_DECODER, *_ROUTER), decoders.mixture),
    ((*_DECODER, "mixers"), decoders.layer_routing),
    ((*_DECODER, "model.ffn_mult", "model.activation"), decoders.dense),
    ((*_EXPORTED, "model.family", "model.ffn", "problems.name"), decoders.pretrained),
    ((*_EXPORTED, "model.num_experts", "model.top_k", "text.context"), decoders.olmoe),
    (("frozen.model", "adapters.variant", "adapters.rank"), _adapters),
)
