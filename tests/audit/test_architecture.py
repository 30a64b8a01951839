"""Diagrams of models: what of a config they tell, which cells share one, and that no text leaves its box."""

import copy
from pathlib import Path

import pytest
import yaml

from latentbridge.audit import figures
from latentbridge.audit.figures import anatomy, draw
from latentbridge.audit.figures.architecture import FIGURES, MOST
from latentbridge.audit.figures.boxes import Diagram, draw_boxes, merged
from latentbridge.audit.figures.style import RC
from latentbridge.audit.records import read_records

CONFIGS = Path(__file__).parents[2] / "configs"
DECODER = {"dim": 48, "layers": 3, "heads": 6, "norm": "rmsnorm", "positions": "rope", "ffn_mult": 2}
TEXT = {"name": "tinystories", "tokenizer": "characters", "context": 96}
GATED = {
    "source": {"model": "bundled:gpt2_char", "layer": -1},
    "target": {"model": "hub/llama-3-8B", "layer": -1},
    "prompt_mode": "soft_only",
    "injection": "prepend",
    "model": {
        **{"kind": "gated", "soft_tokens": 7, "dim": 256, "depth": 5, "heads": 8},
        **{"gate_init": 0.5, "rms_match": True},
    },
}
MIXTURE = {
    "text": TEXT,
    "model": {**DECODER, "activation": "gelu"},
    "mixture": {
        "num_experts": 8,
        "router": {"strategy": "softk", "top_k": 2, "network": "mlp"},
        "dispatch": {"kind": "padded", "capacity_factor": 1.5},
    },
}
ROUTED = {
    "text": TEXT,
    "model": DECODER,
    "mixers": ["gdn", "routed", "softmax"],
    "gdn": {"heads": None, "key_width": 16, "value_width": 32},
    "ffn_width": None,
}
DENSE = {"text": TEXT, "model": {**DECODER, "activation": "gelu", "tied": True}}
LLAMA = {
    "model": {
        **{"family": "llama", "tokenizer": "bpe", "width": 256, "layers": 6, "heads": 8},
        **{"kv_heads": 4, "ffn": 704},
    },
    "problems": {"name": "word_problems"},
    "question_weight": 0.2,
}
OLMOE = {
    "text": TEXT,
    "model": {"width": 96, "layers": 5, "heads": 4, "num_experts": 8, "top_k": 2, "expert_width": 80},
}
ADAPTERS = {
    "frozen": {"model": "bundled:olmoe"},
    "adapters": {"variant": "routed", "kind": "lora", "rank": 9, "scale": 2.0, "num_adapters": 4, "top_k": 1},
}


def changed(config, **changes):
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = config
        for key in above:
            inner = inner[key]
        inner[last] = value
    return config


DIT = changed(GATED, model__kind="dit", model__dit={"train_sampling_steps": 2, "eval_sampling_steps": 4})
ALL = {
    "gated": GATED,
    "dit": DIT,
    "passthrough": changed(GATED, model__kind="passthrough"),
    "mixture": MIXTURE,
    "routed": ROUTED,
    "dense": DENSE,
    "llama": LLAMA,
    "gpt2": changed(LLAMA, model__family="gpt2", model__kv_heads=None),
    "olmoe": OLMOE,
    "perft": ADAPTERS,
    "embedded": changed(ADAPTERS, adapters__variant="embedded"),
    "shared": changed(ADAPTERS, adapters__variant="shared"),
}


def told(config):
    """Texts of boxes and frames by name, and arrows as (start, end, text)."""
    elements = anatomy.diagram(config).elements
    texts = {row["name"]: row["text"] for row in elements if row["element"] != "arrow"}
    return texts, {(row["name"], row["to"], row["text"]) for row in elements if row["element"] == "arrow"}


def roles(config):
    return {row["name"]: row["role"] for row in anatomy.diagram(config).elements if row["element"] == "box"}


def test_a_bridge_stands_between_two_frozen_models_and_tells_its_bottleneck_and_gates():
    texts, arrows = told(GATED)

    assert roles(GATED)["source"] == roles(GATED)["target"] == "frozen"
    assert texts["source"] == "source gpt2_char, frozen: last states"
    assert texts["start"] == "7 learned queries of width 256"
    assert texts["blocks"] == "5 blocks of width 256; gates are tanh of one number each, from 0.5"
    assert texts["soft"] == "7 soft tokens"
    assert {("source", "cross", "always"), ("soft", "target", "always")} <= arrows
    # the question reaches the target through the bridge alone
    assert {start for start, end, _ in arrows if end == "target"} == {"soft", "text"}
    assert texts["text"] == "end of the prompt"


def test_other_bridges_and_other_ways_in_are_told_apart():
    assert told(DIT)[0]["bridge_out"] == "linear: a velocity, followed in 4 Euler steps, 2 in training"
    assert told(ALL["passthrough"])[0]["bridge_out"] == "the last 7 states as they are"
    adapter = changed(GATED, injection="adapter", adapter_scale=0.3, prompt_mode="soft_plus_text")
    assert told(adapter)[0]["target"].endswith("times 0.3, added to the text's embeddings")
    assert told(adapter)[0]["text"] == "the whole prompt"


def test_of_many_experts_the_first_and_the_last_are_drawn_behind_dashed_arrows():
    texts, arrows = told(MIXTURE)

    assert texts["router"] == "router softk, mlp: 2 of 8 experts a token; padded, capacity factor 1.5"
    assert [texts[f"expert_{n}"] for n in range(4)] == ["expert 1", "expert 2", "expert 3", "…"]
    assert texts["expert_4"] == "expert 8"
    assert texts["sum"] == "weighted sum; an expert: gelu, 48 to 96 to 48"
    assert {kind for start, _, kind in arrows if start == "router"} == {"some"}
    few = changed(MIXTURE, mixture__num_experts=2)
    assert [name for name in told(few)[0] if name.startswith("expert")] == ["expert_0", "expert_1"]
    assert {kind for start, _, kind in told(few)[1] if start == "router"} == {"always"}


def test_a_hash_learns_nothing_and_is_not_drawn_as_what_is_trained():
    assert roles(MIXTURE)["router"] == "chooses"
    assert roles(changed(MIXTURE, mixture__router__strategy="hash"))["router"] == "data"


def test_the_layers_of_a_hybrid_are_drawn_by_its_name_too():
    texts, _ = told(changed(ROUTED, mixers="softmax_17"))
    layers = [texts[f"layer_{layer}"] for layer in range(12)]

    assert [layer for layer, text in enumerate(layers) if text.endswith("softmax attention")] == [5, 11]


def test_mixers_stand_by_layer_and_the_router_after_layer_0_leads_to_routed_layers_alone():
    texts, arrows = told(ROUTED)

    assert texts["layer_0"] == "layer 0: gated delta"
    assert (texts["layer_1_0"], texts["layer_1_1"]) == ("layer 1: gated delta", "or softmax attention")
    assert texts["layer_2"] == "layer 2: softmax attention"
    assert [roles(ROUTED)[name] for name in ("layer_0", "layer_1_0", "layer_1_1", "layer_2")] == [
        *("trained", "trained", "other", "other")
    ]
    assert {(start, end) for start, end, _ in arrows if "router" in (start, end)} == {
        ("layer_0", "router"),
        ("router", "layer_1_1"),
    }
    assert "SwiGLU, 48 to 96 to 48" in texts["layers"]
    assert "gated delta: 6 heads, keys 16, values 32 wide" in texts["layers"]
    assert "router" not in told(changed(ROUTED, mixers=["gdn"] * 3))[0]


def test_a_dense_model_is_drawn_with_one_feed_forward_layer_a_block_and_no_router():
    """Launches of the jobs lm and pretrain had no diagram."""
    texts, arrows = told(DENSE)

    assert texts["ffn"] == "feed-forward layer: gelu, 48 to 96 to 48"
    assert texts["layers"] == "3 layers; rmsnorm before either"
    assert texts["head"] == "norm and output layer, the embedding again: the next token"
    assert arrows == {
        ("read", "embedding", "always"),
        ("embedding", "attention", "always"),
        ("attention", "ffn", "always"),
        ("ffn", "head", "always"),
    }


def test_pretrained_families_are_told_apart_by_what_transformers_gives_them():
    llama, gpt2 = told(LLAMA)[0], told(ALL["gpt2"])[0]

    assert llama["read"] == "word_problems with their solutions (bpe)"
    assert llama["attention"] == "causal softmax attention, 8 heads, keys and values of 4"
    assert llama["ffn"] == "feed-forward layer: SwiGLU, 256 to 704 to 256"
    assert "rotary" in llama["embedding"] and "RMSNorm" in llama["layers"]
    assert gpt2["attention"] == "causal softmax attention, 8 heads"
    assert "learned" in gpt2["embedding"] and "LayerNorm" in gpt2["layers"] and "GELU" in gpt2["ffn"]
    assert anatomy.diagram(changed(LLAMA, model__family="mamba")) is None


def test_the_base_of_adapters_is_a_mixture_of_experts():
    texts, _ = told(OLMOE)

    assert texts["router"] == "router: 2 of 8 experts a token; dropless"
    assert texts["sum"] == "weighted sum; an expert: SwiGLU, 96 to 80 to 96"


@pytest.mark.parametrize("lacking", ["num_experts", "router"])
def test_a_mixture_of_which_not_all_is_told_is_not_drawn_as_a_dense_model(lacking):
    config = copy.deepcopy(MIXTURE)
    del config["mixture"][lacking]

    assert anatomy.diagram(config) is None


def test_every_config_that_ships_for_dense_models_has_a_diagram():
    for name in (
        "language_model/tiny",
        "pretrain/source_gpt2",
        "pretrain/target_llama",
        "perft/stories_base",
    ):
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        config.setdefault("text", {}).setdefault("name", "tinystories")
        assert anatomy.diagram(config) is not None, name


@pytest.mark.parametrize(
    ("variant", "before", "kind"),
    [("routed", "gate", "some"), ("embedded", "router", "some"), ("shared", "states", "always")],
)
def test_adapters_follow_their_gate_the_frozen_router_or_nobody(variant, before, kind):
    texts, arrows = told(changed(ADAPTERS, adapters__variant=variant))

    assert {row for row in arrows if row[1] == "adapters"} == {(before, "adapters", kind)}
    assert ("gate" in texts) is (variant == "routed")
    assert "lora of rank 9, times 2.0" in texts["adapters"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("gated", "depth"), ("dit", "soft_tokens"), ("mixture", "heads"), ("routed", "dim")),
        *(("dense", "ffn_mult"), ("llama", "ffn"), ("olmoe", "top_k")),
    ],
)
def test_a_config_that_lacks_what_would_be_told_has_no_diagram(name, key):
    config = copy.deepcopy(ALL[name])
    del config["model"][key]

    assert anatomy.diagram(config) is None


def test_diagrams_that_differ_in_numbers_alone_become_one_that_tells_them_all():
    few, many = (anatomy.diagram(changed(GATED, model__soft_tokens=tokens)) for tokens in (7, 16))
    other = anatomy.diagram(changed(GATED, target__model="hub/llama-2-8B"))

    assert few.shape() == many.shape() != other.shape(), "the 3 of llama-3 is a name, not a number"
    texts = {row["name"]: row["text"] for row in merged([few, many]).elements if row["element"] == "box"}
    assert texts["soft"] == "7/16 soft tokens"
    assert texts["start"] == "7/16 learned queries of width 256"


def test_places_are_no_numbers_that_may_differ():
    one, two = Diagram(), Diagram()
    one.box("a", 0, "a", "data", x=0.3)
    two.box("a", 0, "a", "data", x=0.7)

    assert one.shape() != two.shape()


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_text_leaves_its_box_at_the_width_of_a_column(name):
    figure = pytest.importorskip("matplotlib.figure")
    with pytest.importorskip("matplotlib").rc_context(RC):
        rows = anatomy.diagram(ALL[name]).elements
        canvas = figure.Figure(figsize=(3.3, 5))
        axes = canvas.add_axes((0, 0, 1, 1))
        draw_boxes(axes, rows)
        canvas.draw_without_rendering()

    frames = {patch.get_gid(): patch.get_window_extent() for patch in axes.patches if patch.get_gid()}
    texts = {text.get_gid(): text.get_window_extent() for text in axes.texts if text.get_gid()}
    assert set(frames) == set(texts) == {row["name"] for row in rows if row["element"] == "box"}
    for key, text in texts.items():
        box = frames[key]
        assert box.x0 <= text.x0 and text.x1 <= box.x1, key
        assert box.y0 <= text.y0 and text.y1 <= box.y1, key
    boxes = list(frames.values())
    assert not [1 for n, one in enumerate(boxes) for other in boxes[:n] if one.overlaps(other)]


def test_a_launch_has_one_diagram_an_architecture_with_the_runs_it_is_of(launch):
    for tokens in (7, 16):
        for seed in (1, 2):
            launch.run(f"t{tokens}", seed, config=changed(GATED, model__soft_tokens=tokens))
    launch.run("dit", 1, config=DIT)
    launch.run("other", 1, config={"model": {"soft_tokens": 3}})
    sheet = FIGURES[0].read(read_records(launch.path))

    assert list(dict.fromkeys((row["cells"], row["run_ids"]) for row in sheet.rows)) == [
        ("t7 t16", " ".join(f"{number:012x}" for number in range(4))),
        ("dit", f"{4:012x}"),
    ]
    assert "blue, dashed: frozen" in sheet.about and "pink" not in sheet.about


def test_architectures_beyond_a_few_are_named_and_stay_in_the_csv(launch):
    names = list(ALL)[: MOST + 1]
    for name in names:
        launch.run(name, 1, config=ALL[name])
    sheet = FIGURES[0].read(read_records(launch.path))

    assert sheet.left_out == {names[-1]: "no room; in the CSV"}
    assert {row["cell"] for row in sheet.rows} == set(names)


def test_equal_configs_give_equal_bytes(launch, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "DPI", 30)
    monkeypatch.setattr(figures, "FIGURES", FIGURES)
    for name, config in ALL.items():
        launch.run(name, 1, config=config)
    first = {path.name: path.read_bytes() for path in draw(launch.path)}

    assert set(first) == {f"architecture.{suffix}" for suffix in ("csv", "pdf", "png", "svg")}
    assert {path.name: path.read_bytes() for path in draw(launch.path)} == first
