from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from latentbridge.data.language_model import load_frozen
from latentbridge.errors import ConfigError, RunError
from latentbridge.train import distributed
from latentbridge.translator.prompts import Tokens
from latentbridge.translator.states import LiveStates, StoredStates, model_key

CPU = torch.device("cpu")
ROWS = [[1, 9, 30], [1, 40], [1, 5, 6, 7, 8], [1]]


@pytest.fixture(scope="module")
def source(pair):
    return load_frozen(pair["source"], torch.float32, CPU)


def stored(source, folder: Path, layer: int = -1) -> StoredStates:
    prompts = Tokens(ROWS, CPU)
    return StoredStates(LiveStates(source, layer, prompts), prompts, folder, {"layer": layer}, Mock())


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_stored_states_are_those_of_the_source_to_half_precision(source, tmp_path: Path, layer: int):
    live = LiveStates(source, layer, Tokens(ROWS, CPU)).take([2, 0])
    kept = stored(source, tmp_path, layer).take([2, 0])

    assert torch.equal(kept.mask, live.mask)
    assert torch.allclose(kept.values[live.mask].float(), live.values[live.mask], atol=1e-3)


def test_states_of_a_text_do_not_depend_on_its_neighbours(source):
    live = LiveStates(source, 2, Tokens(ROWS, CPU))

    assert torch.allclose(live.take([2, 1]).values[1, :2], live.take([1]).values[0, :2], atol=1e-6)


def test_a_second_run_of_the_launch_does_not_run_the_source_again(source, tmp_path: Path, monkeypatch):
    first = stored(source, tmp_path).take([3, 1])
    monkeypatch.setattr("latentbridge.translator.states.hidden_states", Mock(side_effect=AssertionError))

    assert torch.equal(stored(source, tmp_path).take([3, 1]).values, first.values)


def test_a_rank_without_a_share_of_its_own_tells_progress_too(source, tmp_path: Path, ranks):
    def told() -> list[tuple[int, int]]:
        distributed.init()
        prompts, progress = Tokens(ROWS, CPU), Mock()
        StoredStates(LiveStates(source, -1, prompts), prompts, tmp_path, {}, progress)
        return [call.args for call in progress.call_args_list]

    # one chunk, which is the second rank's; then both read it
    assert ranks(told) == [[(4, 4)], [(4, 4), (4, 4)]]


def test_states_of_another_layer_are_not_mistaken_for_these(source, tmp_path: Path):
    assert not torch.equal(
        stored(source, tmp_path, 1).take([0]).values, stored(source, tmp_path).take([0]).values
    )


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_does_not_exist_is_refused_with_the_range(source, layer: int):
    """The seed took the last layer whenever the asked one did not exist (D12)."""
    with pytest.raises(ConfigError, match=rf"layer is {layer}; this model has -4..3"):
        LiveStates(source, layer, Tokens(ROWS, CPU)).take([0])


def test_states_that_overflow_half_precision_are_refused(source, tmp_path: Path, monkeypatch):
    huge = torch.full((4, 5, 12), 7e4)
    monkeypatch.setattr("latentbridge.translator.states.hidden_states", lambda *_: huge)

    with pytest.raises(RunError, match="do not fit fp16"):
        stored(source, tmp_path)


def test_a_model_folder_that_changed_has_another_key(tmp_path: Path, source):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = model_key(str(folder), source)
    (folder / "model.safetensors").write_text("other weights")

    assert model_key(str(folder), source) != before


def test_prompts_with_a_long_beginning_in_common_have_the_states_they_have_without_sharing(
    source, tmp_path: Path, monkeypatch
):
    """The eight worked examples are nine tenths of a prompt: they are read, and kept, once."""
    rows = [[1, *range(10, 90), *row] for row in ([5, 6], [7], [8, 9, 4, 3])]
    prompts = Tokens(rows, CPU)
    shared = LiveStates(source, 2, prompts)
    kept = StoredStates(shared, prompts, tmp_path, {}, Mock()).take([1, 2])
    found = shared.take([1, 2])
    monkeypatch.setattr("latentbridge.translator.states.WORTH_SHARING", 1000)
    alone = LiveStates(source, 2, prompts).take([1, 2])

    count = int(found.mask[0].sum()), int(found.mask[1].sum())
    assert count == (82, 85)
    for row in range(2):
        expected = alone.values[row, : count[row]]
        assert torch.allclose(found.values[row, : count[row]], expected, atol=1e-4)
        assert torch.allclose(kept.values[row, : count[row]].float(), expected, atol=2e-3)
    (file,) = tmp_path.glob("*.safetensors")
    # of 3 rows, 2 + 1 + 4 tokens of width 12 in fp16, and a header
    assert file.stat().st_size < 7 * 12 * 2 + 400
