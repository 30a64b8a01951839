from typing import Any

import pytest

from latentbridge.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model.heads": 3}, "dim is 8; it must be a multiple of heads"),
        ({"losses.lm.weight": 0.0, "losses.info_nce.start_step": 1}, "no term is active in update 1"),
        ({"early_stop.metric": "bridged_accuracy"}, "write eval.generate_every_eval: true"),
        ({"problems.eval_examples": 1}, "shuffled-source control needs 2"),
        ({"model.soft_token": 4}, "did you mean 'soft_tokens'"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(configure, changes: dict[str, Any], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        configure(changes)


def test_source_and_target_take_the_same_keys_so_that_they_can_be_swapped(configure):
    config = configure({"source.layer": 2, "target.layer": 1})

    assert type(config.source) is type(config.target)


def test_accuracy_decides_what_is_best_where_every_evaluation_generates(configure):
    config = configure({"early_stop.metric": "bridged_accuracy", "eval.generate_every_eval": True})

    assert config.early_stop.metric == "bridged_accuracy"
