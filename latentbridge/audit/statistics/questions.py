"""Tests of two models on the same questions: what one gets right and the other does not."""

from __future__ import annotations

from collections.abc import Sequence

from latentbridge.metric import Metric, void

DRAWS = 10_000
# 1,000 draws of GSM8K's 1,319 questions are 10 MB
_BATCH = 1_000


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p that a question only one model gets right is as likely the one's as the other's.

    The exact binomial test of McNemar (1947), not its mid-p; without such questions nothing speaks for
    either, and p is 1.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_bootstrap(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Metric:
    """Mean of first minus second with its 95 % percentile interval, over questions drawn anew together.

    first, second: (N,) of the same questions.  The same seed gives the same interval (Efron 1979).
    """
    import numpy as np
    from scipy.stats import bootstrap

    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if differences.size == 0:
        return void("no shared questions")
    mean = float(differences.mean())
    if differences.size == 1:
        return Metric(value=mean, n=1)
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=DRAWS,
        batch=_BATCH,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Metric(value=mean, n=differences.size, low=float(interval.low), high=float(interval.high))
