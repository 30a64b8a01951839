import pytest
import torch

from latentbridge.errors import ConfigError
from latentbridge.nn.norm import rms
from latentbridge.translator.bridges import build_bridge
from latentbridge.translator.config import BridgeConfig

CONFIG = BridgeConfig(kind="passthrough", soft_tokens=3)


def test_it_gives_the_last_states_of_each_row_at_the_targets_scale():
    """The seed took the first ones, which were worked examples: it could not see the question."""
    hidden = torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    soft = build_bridge(CONFIG, 12, 12, target_rms=0.5)(hidden, mask)

    assert torch.allclose(soft[0], hidden[0, 2:5] / rms(hidden[0, 2:5]) * 0.5)
    assert torch.allclose(soft[1], hidden[1, 1:4] / rms(hidden[1, 1:4]) * 0.5)


def test_of_a_shorter_text_the_first_state_is_repeated():
    config = CONFIG.model_copy(update={"rms_match": False})
    hidden = torch.randn(1, 5, 12)
    soft = build_bridge(config, 12, 12, target_rms=0.5)(hidden, torch.tensor([[True, True, *[False] * 3]]))

    assert torch.equal(soft[0], hidden[0, [0, 0, 1]])


def test_models_of_different_widths_are_refused():
    with pytest.raises(ConfigError, match="source states are 12 wide and the target's embeddings 20"):
        build_bridge(CONFIG, 12, 20, target_rms=0.5)
