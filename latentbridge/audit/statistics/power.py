"""How many seeds or questions would settle a difference, if it is what was seen.

What was seen is itself uncertain, the more so the fewer seeds it is of: these numbers plan the next launch
and say nothing about the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from latentbridge.audit.statistics.corrections import SIGNIFICANCE

POWER = 0.8
# beyond this no one will wait
MOST_SEEDS, MOST_QUESTIONS = 10_000, 100_000


def paired_t_power(d_z: float, pairs: int) -> float:
    """Chance that a two-sided paired t test at 0.05 sees an effect of d_z, 0 or more, in so many pairs."""
    from scipy.stats import nct, t

    bound, shift = t.isf(SIGNIFICANCE / 2, pairs - 1), d_z * math.sqrt(pairs)
    wrong_side = float(nct.cdf(-bound, pairs - 1, shift))
    # scipy gives nan for some chances below 1e-14, and no comparison with nan holds
    return float(nct.sf(bound, pairs - 1, shift)) + (0.0 if math.isnan(wrong_side) else wrong_side)


def seeds_for(d_z: float) -> int | None:
    """Pairs of seeds that see d_z in 80 % of launches; None where 10,000 do not."""
    return _smallest(lambda pairs: paired_t_power(abs(d_z), pairs), least=2, most=MOST_SEEDS)


def mcnemar_power(rate_first: float, rate_second: float, questions: int) -> float:
    """Chance that McNemar's exact test at 0.05 tells two models apart on so many questions.

    rate_first, rate_second: shares of questions that only the one and only the other gets right
    """
    import numpy as np
    from scipy.stats import binom

    either = rate_first + rate_second
    if either == 0:
        return 0.0
    # counts beyond have a chance of 1e-12, and of 100,000 questions they are nearly all counts
    first, last = (int(quantile(1e-12, questions, either)) for quantile in (binom.ppf, binom.isf))
    discordant = np.arange(first, last + 1)
    # the largest count whose lower tail is at most 0.025; -1 where there is none
    bound = binom.ppf(SIGNIFICANCE / 2, discordant, 0.5)
    bound = np.where(2 * binom.cdf(bound, discordant, 0.5) <= SIGNIFICANCE, bound, bound - 1)
    share = rate_first / either
    seen = binom.cdf(bound, discordant, share) + binom.cdf(bound, discordant, 1 - share)
    return float(np.sum(binom.pmf(discordant, questions, either) * seen))


def questions_for(rate_first: float, rate_second: float) -> int | None:
    """Questions on which McNemar's exact test sees such rates in 80 % of draws; None: 100,000 do not."""
    # in no time, where the search would take its longest; the exact test needs a few more still
    if _normal_questions(rate_first, rate_second) > MOST_QUESTIONS:
        return None
    return _smallest(
        lambda questions: mcnemar_power(rate_first, rate_second, questions), least=1, most=MOST_QUESTIONS
    )


def _normal_questions(rate_first: float, rate_second: float) -> float:
    """The same by the normal approximation, in no time (Connor 1987)."""
    either, apart = rate_first + rate_second, abs(rate_first - rate_second)
    # rates as close as rounding are equal: the square of their difference may be 0 where it is not
    if apart**2 == 0:
        return math.inf
    normal = NormalDist()
    tail, power = normal.inv_cdf(1 - SIGNIFICANCE / 2), normal.inv_cdf(POWER)
    return (tail * math.sqrt(either) + power * math.sqrt(either - apart**2)) ** 2 / apart**2


def _smallest(power: Callable[[int], float], least: int, most: int) -> int | None:
    """The first number whose power is enough, found by doubling and halving."""
    below, enough = least - 1, least
    while power(enough) < POWER:
        if enough == most:
            return None
        below, enough = enough, min(most, 2 * enough)
    while enough - below > 1:
        middle = (below + enough) // 2
        if power(middle) < POWER:
            below = middle
        else:
            enough = middle
    return enough
