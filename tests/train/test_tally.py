from __future__ import annotations

from typing import Any

import pytest
import torch

from latentbridge.errors import RunError
from latentbridge.train import distributed
from latentbridge.train.tally import Tally


def test_means_are_over_the_times_a_value_was_there() -> None:
    tally = Tally()
    tally.add(1, {"losses.lm": torch.tensor(2.0), "loss": torch.tensor(2.0)})
    tally.add(2, {"losses.lm": torch.tensor(3.0), "losses.kl": torch.tensor(7.0), "loss": torch.tensor(10.0)})
    tally.settle()
    tally.add(3, {"losses.lm": torch.tensor(4.0), "loss": torch.tensor(6.0)})
    tally.settle()

    assert tally.take().means() == {"losses.lm": 3.0, "loss": 6.0, "losses.kl": 7.0}
    assert tally.take().means() == {}


def test_a_mean_weighs_micro_batches_by_their_samples() -> None:
    tally = Tally()
    tally.add(1, {"loss": torch.tensor(2.0)}, weight=6)
    for value in (3.0, 5.0):
        tally.add(2, {"loss": torch.tensor(value)}, weight=3)
    tally.settle()

    assert tally.take().means() == {"loss": 3.0}


def test_totals_survive_a_checkpoint() -> None:
    tally = Tally()
    tally.count(samples=4, tokens=30)
    tally.add(1, {"loss": torch.tensor(2.0)})
    tally.settle()
    again = Tally(tally.as_record())
    again.count(samples=4, tokens=31)
    again.add(2, {"loss": torch.tensor(5.0)})
    again.settle()
    totals = again.take()

    assert (totals.means(), totals.samples, totals.tokens) == ({"loss": 3.5}, 8, 61)


def test_the_first_bad_term_is_named_though_it_spoils_all_the_others_later() -> None:
    tally = Tally()
    for step in (1, 2, 3):
        lm = torch.tensor(float("nan") if step == 3 else 1.0)
        kl = torch.tensor(float("inf") if step >= 2 else 1.0)
        tally.add(step, {"losses.lm": lm, "losses.kl": kl, "loss": lm + kl})

    with pytest.raises(RunError, match=r"update 2: losses\.kl is not finite on rank 0"):
        tally.settle()


def test_every_rank_refuses_what_one_rank_computed(ranks: Any) -> None:
    def settle() -> str:
        distributed.init()
        tally = Tally()
        bad = distributed.rank() == 1
        tally.add(5, {"losses.lm": torch.tensor(float("nan") if bad else 1.0)})
        tally.add(5, {"grad_norm": torch.tensor(float("nan"))})
        try:
            tally.settle()
        except RunError as error:
            return str(error)
        return "accepted"

    assert all("update 5: losses.lm is not finite on rank 1" in text for text in ranks(settle))


def test_ranks_are_averaged_and_their_tokens_added(ranks: Any) -> None:
    def settle() -> tuple[dict[str, float], int, int]:
        distributed.init()
        tally = Tally()
        tally.add(1, {"loss": torch.tensor(2.0 + 4.0 * distributed.rank())})
        tally.count(samples=3, tokens=10 + distributed.rank())
        tally.settle()
        totals = tally.take()
        return totals.means(), totals.samples, totals.tokens

    assert ranks(settle) == [({"loss": 4.0}, 6, 21)] * 2
