import json
import math

import pytest

from latentbridge.metric import Metric, better, mean, proportion, ratio, void


def test_wilson_by_hand():
    # 7 of 10 with z = 1.95996: (0.7 + 0.19207) / 1.38415 = 0.64450; half 0.24783
    found = proportion(7, 10)

    assert (found.value, found.n) == (0.7, 10)
    assert found.low == pytest.approx(0.39678, abs=1e-5)
    assert found.high == pytest.approx(0.89221, abs=1e-5)


def test_wilson_at_the_ends_stays_inside_and_keeps_a_width():
    none, all_right = proportion(0, 20), proportion(20, 20)

    assert none.low == pytest.approx(0.0, abs=1e-12)
    assert none.high == pytest.approx(0.16113, abs=1e-5)
    assert all_right.high == pytest.approx(1.0, abs=1e-12)
    assert all_right.low == pytest.approx(1 - 0.16113, abs=1e-5)
    assert 0.0 <= none.low <= none.high <= 1.0


def test_nothing_measured_is_void_never_zero():
    for found in (proportion(0, 0), mean([]), ratio([], [])):
        assert found.value is None
        assert found.void


def test_mean_by_hand():
    # 1 2 3 6: mean 3, variance 14 / 3, half = 1.95996 * sqrt(14 / 12)
    found = mean([1.0, 2.0, 3.0, 6.0])

    assert (found.value, found.n) == (3.0, 4)
    assert found.high - 3.0 == pytest.approx(1.95996 * math.sqrt(14 / 12), abs=1e-4)
    assert found.low + found.high == pytest.approx(6.0)


def test_one_sample_has_no_interval():
    assert mean([0.3]) == Metric(value=0.3, n=1)
    assert ratio([1.0], [4.0]) == Metric(value=0.25, n=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_makes_the_whole_metric_void(bad):
    assert mean([1.0, bad, 2.0]).void == "not finite"
    assert ratio([1.0, bad], [1.0, 2.0]).value is None
    assert ratio([1.0, 2.0], [1.0, bad]).value is None


def test_a_ratio_divides_means_not_samples():
    # 4 / 10, where the mean of the ratios would be (1 + 1 / 3) / 2
    assert ratio([1.0, 3.0], [1.0, 9.0]).value == pytest.approx(0.4)


def test_the_ratio_interval_by_hand():
    # residuals of 1 3 over 1 9 at 0.4: 0.6 and -0.6; variance 0.72; half = z sqrt(0.72 / 2) / 5
    found = ratio([1.0, 3.0], [1.0, 9.0])

    assert found.high - found.value == pytest.approx(1.95996 * 0.6 / 5, abs=1e-5)
    assert found.value - found.low == pytest.approx(1.95996 * 0.6 / 5, abs=1e-5)


def test_a_proportional_ratio_has_no_width():
    found = ratio([0.5, 1.0, 2.0], [1.0, 2.0, 4.0])

    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(("numerators", "denominators"), [([1.0], [0.0]), ([1.0, 1.0], [2.0, -2.0])])
def test_a_ratio_over_zero_is_void(numerators, denominators):
    assert "zero" in ratio(numerators, denominators).void


def test_a_ratio_of_unpaired_samples_is_void():
    assert ratio([1.0, 2.0], [1.0]).void == "no paired samples"


def test_wilson_covers_the_truth_as_often_as_it_promises():
    # exact coverage: the binomial weight of every outcome whose interval holds p, averaged over p
    n, shares = 30, [step / 100 for step in range(5, 96)]
    intervals = [proportion(successes, n) for successes in range(n + 1)]
    covered = [
        sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k)
            for k, found in enumerate(intervals)
            if found.low <= p <= found.high
        )
        for p in shares
    ]

    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("metric", [proportion(3, 7), void("no samples"), void("not finite", 5), mean([0.0])])
def test_a_record_reads_back_as_the_same_metric(metric):
    line = json.dumps(metric.as_record(), allow_nan=False)

    assert Metric.from_record(json.loads(line)) == metric


def test_text_shows_interval_or_reason():
    assert str(Metric(value=0.5, n=4, low=0.25, high=0.75)) == "0.500 [0.250, 0.750]"
    assert str(Metric(value=0.5, n=1)) == "0.500"
    assert str(void("no samples")) == "void (no samples)"


@pytest.mark.parametrize("n", [1, 7, 10, 48, 96, 200, 512])
def test_an_interval_never_lies_beside_its_own_value_however_it_rounds(n):
    for successes in range(n + 1):
        share = proportion(successes, n)
        assert 0 <= share.low <= share.value <= share.high <= 1


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        ("lower", "val_nll nll val_loss answer_nll test_bits_per_byte test_perplexity bridged_ttft_s"),
        ("lower", "cascade_kv_mib c1_drop_rate test_demand_cv val_max_vio test_dead_experts gini"),
        (
            "higher",
            "accuracy bridged_accuracy test_accuracy context_recovered kv_saved_mib c1.25_tokens_per_s",
        ),
        (None, "glossary loss_ratio active_parameters activated_percent test_layer_1_gdn_share test_entropy"),
        (None, "test_route_entropy compression_question test_confidence test_class_information x"),
        (
            None,
            "shuffled_source_nll no_source_accuracy context_recovered_cut_text cut_text_nll full_text_nll",
        ),
        (None, "source_alone_accuracy cascade_accuracy test_base_nll context_recovered_no_source"),
    ],
)
def test_a_name_tells_which_side_is_better_and_a_control_has_none(direction, names):
    """Whatever was no loss counted as better the more there was of it: parameters, entropies, controls."""
    assert {name: better(name) for name in names.split()} == dict.fromkeys(names.split(), direction)
