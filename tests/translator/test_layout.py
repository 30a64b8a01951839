import pytest
import torch

from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.errors import ConfigError
from latentbridge.translator.layout import TargetInput, refuse_too_long
from latentbridge.translator.prompts import Tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target(pair) -> FrozenLM:
    return load_frozen(pair["target"], torch.float32, CPU)


def test_the_target_reads_bos_then_soft_tokens_then_text(target, configure):
    soft = torch.randn(2, 3, 20)
    text = Tokens([[5, 6], [7]], CPU).take([0, 1], "left")

    vectors, mask = TargetInput(configure(), target, [1])(soft, text)
    assert torch.equal(vectors[0], torch.cat([target.embedding[[1]], soft[0], target.embedding[[5, 6]]]))
    assert mask.tolist() == [[True] * 6, [True, True, True, True, False, True]]


def test_a_model_without_an_opening_reads_none(target, configure):
    text = Tokens([[5, 6], [7]], CPU).take([0, 1], "left")

    vectors, mask = TargetInput(configure(), target, [])(None, text)
    assert torch.equal(vectors[0], target.embedding[[5, 6]])
    assert torch.equal(mask, text.mask)


def test_an_adapter_adds_scaled_soft_tokens_to_the_first_real_embeddings_of_the_text(target, configure):
    """The seed added them to the padding on the left too."""
    soft = torch.randn(2, 3, 20)
    text = Tokens([[5, 6, 8, 9], [7, 4]], CPU).take([0, 1], "left")
    config = configure({"injection": "adapter", "adapter_scale": 0.5})

    vectors, _ = TargetInput(config, target, [1])(soft, text)
    table = target.embedding
    assert torch.allclose(vectors[0, 1:4], table[[5, 6, 8]] + 0.5 * soft[0])
    assert torch.equal(vectors[0, 4], table[9])
    assert torch.equal(vectors[1, 1:3], table[[0, 0]])
    assert torch.allclose(vectors[1, 3:], table[[7, 4]] + 0.5 * soft[1, :2])


def test_what_exceeds_a_models_positions_is_refused_before_training(pair):
    source = load_frozen(pair["source"], torch.float32, CPU)
    refuse_too_long(source, 256, "source: a training prompt")
    with pytest.raises(
        ConfigError, match="a training prompt can take 257 tokens, but gpt2 has 256 positions"
    ):
        refuse_too_long(source, 257, "source: a training prompt")
