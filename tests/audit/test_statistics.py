import pytest

from latentbridge.audit.statistics import has_spread, holm, seed_mean, welch


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
    stats = pytest.importorskip("scipy.stats")
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


def test_holm_raises_by_the_number_of_claims_still_open_and_keeps_the_order():
    # 0.01 x 3, then 0.03 x 2, then 0.04 x 1 is below the one before, so it is raised to it
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_rounding_is_no_spread():
    assert not has_spread([0.1 + 0.2, 0.3])
    assert not has_spread([0.0, 0.0])
    assert has_spread([0.3, 0.305])
