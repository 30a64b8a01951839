import math

import numpy as np
import pytest

from latentbridge.audit.statistics import power
from latentbridge.audit.statistics.corrections import holm, outcome
from latentbridge.audit.statistics.effects import cohens_d, cohens_d_z, cohens_h
from latentbridge.audit.statistics.power import mcnemar_power, paired_t_power, questions_for, seeds_for
from latentbridge.audit.statistics.questions import mcnemar_exact, paired_bootstrap
from latentbridge.audit.statistics.seeds import compare_seeds, has_spread, paired_t, seed_mean, welch

stats = pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module")
def statsmodels():
    pytest.importorskip("statsmodels")
    from statsmodels.stats import contingency_tables, multitest, power, proportion

    return {"mcnemar": contingency_tables.mcnemar, "power": power, "holm": multitest, "h": proportion}


def test_three_seeds_get_the_t_interval_of_two_degrees_of_freedom():
    found = seed_mean([0.1, 0.2, 0.3])

    # spread 0.1, t(2, 0.975) = 4.3027, half = 4.3027 * 0.1 / sqrt(3)
    assert found.value == pytest.approx(0.2)
    assert found.n == 3
    assert found.high - 0.2 == pytest.approx(0.2484, abs=1e-4)
    assert 0.2 - found.low == pytest.approx(0.2484, abs=1e-4)


def test_the_interval_of_a_share_ends_at_0_and_1():
    low, high = seed_mean([0.0, 0.1, 0.2], share=True), seed_mean([0.8, 0.9, 1.0], share=True)

    assert (low.low, high.high) == (0.0, 1.0)
    assert low.high == pytest.approx(0.1 + 0.2484, abs=1e-4)
    assert high.low == pytest.approx(0.9 - 0.2484, abs=1e-4)


def test_one_seed_has_no_interval_and_none_is_void():
    assert (seed_mean([0.4]).value, seed_mean([0.4]).low) == (0.4, None)
    assert seed_mean([]).void == "no seeds"


def test_welch_agrees_with_scipy():
    first, second = [0.61, 0.63, 0.60], [0.55, 0.50, 0.57, 0.49]

    difference, p = welch(first, second)

    reference = stats.ttest_ind(first, second, equal_var=False)
    low, high = reference.confidence_interval()
    assert p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (difference.low, difference.high) == pytest.approx((low, high), rel=1e-9)


def test_welch_works_where_only_one_side_has_a_spread():
    # second side exact: t = 0.2 / (0.1 / sqrt(3)) with 2 degrees of freedom
    difference, p = welch([0.1, 0.2, 0.3], [0.0, 0.0])

    assert difference.value == pytest.approx(0.2)
    assert p == pytest.approx(0.0742, abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [([0.61, 0.63, 0.60], [0.55, 0.50, 0.57]), ([3.1, 2.2, 9.0, 4.0, 5.5], [3.2, 2.0, 9.9, 4.4, 5.0])],
)
def test_pairs_of_seeds_agree_with_scipy(first, second):
    difference, p = paired_t(first, second)

    reference = stats.ttest_rel(first, second)
    low, high = reference.confidence_interval()
    assert p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (difference.low, difference.high) == pytest.approx((low, high), rel=1e-9)
    assert difference.n == len(first)


def test_seeds_are_paired_by_their_number_and_not_by_their_place():
    # by number the second is below by 0.1, 0.1 and 0.13; by place by 0.3, -0.1, 0.13
    found = compare_seeds({1: 0.4, 2: 0.2, 3: 0.6}, {2: 0.1, 1: 0.3, 3: 0.47})

    assert found.by == "3 pairs"
    assert found.difference.value == pytest.approx(0.11)
    # spread sqrt(0.0003), t = 0.11 / 0.01 at 2 degrees of freedom
    assert found.p == pytest.approx(2 * stats.t.sf(11, 2), rel=1e-9)


@pytest.mark.parametrize("second", [{1: 0.3, 2: 0.1, 3: 0.2}, {1: 0.3, 3: 0.1, 4: 0.15}])
def test_one_seed_more_or_another_on_a_side_makes_it_welch(second):
    first = {1: 0.4, 2: 0.2} if 2 in second else {1: 0.4, 2: 0.2, 3: 0.25}

    found = compare_seeds(first, second)

    reference = stats.ttest_ind(list(first.values()), list(second.values()), equal_var=False)
    assert (found.by, found.difference.n) == ("Welch", len(first) + len(second))
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)


def test_differences_that_differ_by_rounding_alone_have_no_spread():
    """1e6 + 0.3 is stored to 1e-10, which is far more than 1e-12 of a difference of 0.2."""
    values = {1: 1e6 + 0.3, 2: 2e6 + 0.3, 3: 3e6 + 0.3}
    found = compare_seeds(values, {seed: value - 0.2 for seed, value in values.items()})

    assert (found.p, found.difference.value) == (None, None)
    assert found.difference.void.startswith("every pair of seeds differs by the same")
    assert cohens_d_z(list(values.values()), [value - 0.2 for value in values.values()]) is None


def test_holm_raises_by_the_number_of_claims_still_open_and_keeps_the_order(statsmodels):
    # 0.01 x 3, then 0.03 x 2, then 0.04 x 1 is below the one before, so it is raised to it
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    many = [0.2, 0.011, 0.004, 0.9, 0.012, 0.3]
    assert holm(many) == pytest.approx(statsmodels["holm"].multipletests(many, method="holm")[1], rel=1e-9)


def test_the_sign_of_a_win_depends_on_the_metric_and_0_05_is_no_find():
    assert [outcome(0.1, 0.049, lower) for lower in (False, True)] == ["won", "lost"]
    assert [outcome(-0.1, 0.049, lower) for lower in (False, True)] == ["lost", "won"]
    assert outcome(0.1, 0.05, lower_is_better=False) == "tied"


def test_rounding_is_no_spread():
    assert not has_spread([0.1 + 0.2, 0.3])
    assert not has_spread([0.0, 0.0])
    assert has_spread([0.3, 0.305])


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 5), (9, 2), (7, 7), (0, 6), (120, 87), (0, 0)])
def test_mcnemar_is_exact_and_no_mid_p(statsmodels, only_first, only_second):
    found = mcnemar_exact(only_first, only_second)

    table = [[31, only_first], [only_second, 17]]
    assert found == pytest.approx(statsmodels["mcnemar"](table, exact=True).pvalue, rel=1e-9)


def test_mcnemar_by_hand():
    # of six heads or tails none is a head: 2 / 64; of 1 and 5: 2 x (1 + 6) / 64
    assert mcnemar_exact(0, 6) == pytest.approx(2 / 64)
    assert mcnemar_exact(5, 1) == pytest.approx(14 / 64)


def test_the_bootstrap_draws_questions_of_both_sides_together():
    generator = np.random.default_rng(5)
    easy = generator.normal(size=40)
    # what a question does to both sides cancels; drawn apart the interval would be 50 times as wide
    found = paired_bootstrap(easy + 0.5, easy + 0.01 * generator.normal(size=40))

    assert found.n == 40
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.01


def test_the_bootstrap_is_the_percentiles_of_its_draws_and_repeats_itself():
    first, second = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]

    found = paired_bootstrap(first, second, seed=3)

    draws = np.random.default_rng(3).integers(0, 7, size=(10_000, 7))
    means = (np.array(first) - np.array(second))[draws].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-9)
    assert found.value == pytest.approx(2 / 7)
    assert paired_bootstrap(first, second, seed=3) == found
    assert paired_bootstrap([], []).void == "no shared questions"


def test_effects_by_hand(statsmodels):
    # variances 0.01 and 0.04 of 3 and 3: pooled 0.025
    assert cohens_d([0.5, 0.6, 0.7], [0.1, 0.3, 0.5]) == pytest.approx(0.3 / math.sqrt(0.025))
    assert cohens_d([0.5, 0.5], [0.1, 0.1]) is None
    # differences 0.4, 0.3, 0.2: mean 0.3, spread 0.1
    assert cohens_d_z([0.5, 0.6, 0.7], [0.1, 0.3, 0.5]) == pytest.approx(3.0)
    # arcs of pi / 3 and pi / 2
    assert cohens_h(0.25, 0.5) == pytest.approx(math.pi / 3 - math.pi / 2)
    assert cohens_h(0.93, 0.62) == pytest.approx(statsmodels["h"].proportion_effectsize(0.93, 0.62), rel=1e-9)


@pytest.mark.parametrize("d_z", [0.37, 0.9, 1.6, -0.9])
def test_seeds_for_80_percent_agree_with_statsmodels(statsmodels, d_z):
    reference = statsmodels["power"].TTestPower()

    pairs = seeds_for(d_z)

    for number in (pairs - 1, pairs):
        expected = reference.power(abs(d_z), number, 0.05)
        assert paired_t_power(abs(d_z), number) == pytest.approx(expected, rel=1e-9)
    assert paired_t_power(abs(d_z), pairs - 1) < 0.8 <= paired_t_power(abs(d_z), pairs)
    assert pairs == math.ceil(reference.solve_power(abs(d_z), alpha=0.05, power=0.8))


def test_two_seeds_are_not_enough_for_a_large_effect():
    """A tail that scipy gives as nan made every large effect settled by two pairs."""
    # with one degree of freedom a spread above 0.64 of the true one hides 5.77: half of all do
    assert paired_t_power(5.77, 2) == pytest.approx(0.478, abs=1e-3)
    assert paired_t_power(8.15, 2) == pytest.approx(0.634, abs=1e-3)
    assert [seeds_for(d_z) for d_z in (5.77, 8.15, 20.0)] == [3, 3, 2]


def test_no_number_of_seeds_settles_no_difference():
    assert seeds_for(0.0) is None
    assert questions_for(0.1, 0.1) is None


def test_the_power_of_mcnemar_is_the_sum_over_every_table():
    share, expected = [0.3, 0.05], 0.0
    for only_first in range(21):
        for only_second in range(21 - only_first):
            if stats.binomtest(only_first, only_first + only_second or 1).pvalue <= 0.05:
                counts = [only_first, only_second, 20 - only_first - only_second]
                expected += stats.multinomial.pmf(counts, 20, [*share, 0.65])

    assert mcnemar_power(*share, 20) == pytest.approx(expected, rel=1e-9)


def test_questions_for_80_percent_are_a_few_more_than_the_normal_approximation_says():
    first, second = 0.12, 0.06
    # Connor 1987
    either, apart = first + second, first - second
    normal = (1.959964 * math.sqrt(either) + 0.841621 * math.sqrt(either - apart**2)) ** 2 / apart**2

    questions = questions_for(first, second)

    assert normal < questions < 1.1 * normal
    assert mcnemar_power(first, second, questions - 1) < 0.8 <= mcnemar_power(first, second, questions)


def test_a_near_tie_is_given_up_before_its_exact_power_is_looked_for(monkeypatch):
    """A difference of 1 in 10,000 took half a minute to be told that no one would wait for it."""
    asked = []

    def count(*case):
        asked.append(case)
        return mcnemar_power(*case)

    monkeypatch.setattr(power, "mcnemar_power", count)

    # 2.80 ** 2 * 0.2001 / 0.0001 ** 2 = 157 million by the normal approximation
    assert questions_for(0.1001, 0.1) is None
    assert asked == []
    assert questions_for(0.3, 0.0) == 25
    assert asked


def test_the_power_looks_only_at_counts_that_happen(monkeypatch):
    sizes, arange = [], np.arange
    monkeypatch.setattr(np, "arange", lambda *ends: sizes.append(arange(*ends).size) or arange(*ends))

    # 39,440 of 100,000 are discordant, by a spread of 155: 7 spreads to either side
    assert mcnemar_power(0.2, 0.1944, 100_000) == pytest.approx(0.8, abs=0.01)
    assert sizes[0] < 2500
