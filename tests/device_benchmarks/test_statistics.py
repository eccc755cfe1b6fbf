"""Claims about the statistics, most of them on simulated streams whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device_benchmarks import statistics

Groups = list[list[float]]
TIMES = st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=80)


def autocorrelated(rng: np.random.Generator, n: int, *, rho: float) -> np.ndarray:
    noise, values = rng.normal(size=n), np.empty(n)
    values[0] = noise[0]
    for i in range(1, n):
        values[i] = rho * values[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return values


def host_session(
    rng: np.random.Generator, *, slower: float = 1.0, processes: int = 2, rounds: int = 12
) -> tuple[Groups, Groups]:
    """Two contenders in one session: shared drift, 3% own noise, 1% spread between processes, rare 30% spikes."""
    mood = [np.exp(0.1 * autocorrelated(rng, rounds, rho=0.8)) for _ in range(processes)]

    def one(scale: float) -> Groups:
        return [
            (
                scale
                * moods
                * np.exp(0.03 * rng.normal(size=rounds) + rng.normal(0, 0.007))
                * (1 + 0.3 * (rng.random(rounds) < 0.01))
            ).tolist()
            for moods in mood
        ]

    return one(slower), one(1.0)


def test_the_published_sample_minima_of_p90_and_p99_are_kept() -> None:
    samples = [float(i) for i in range(662)]
    assert statistics.percentile(samples[:63], 90) is None
    assert statistics.percentile(samples[:64], 90) == pytest.approx(56.7)
    assert statistics.percentile(samples[:661], 99) is None
    assert statistics.percentile(samples, 99) is not None


def test_a_percentile_outside_the_upper_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[50, 100\), got 10"):
        statistics.samples_needed(10)


@given(TIMES)
def test_percentiles_rise_with_their_rank_and_stay_within_the_samples(samples: list[float]) -> None:
    found = [p for q in (50, 90, 95, 99) if (p := statistics.percentile(samples, q)) is not None]
    assert found == sorted(found)
    assert min(samples) <= found[0] <= found[-1] <= max(samples)


@given(TIMES, st.floats(0.1, 10))
def test_cv_and_outliers_do_not_depend_on_the_unit(samples: list[float], unit: float) -> None:
    scaled = [unit * s for s in samples]
    assert statistics.coefficient_of_variation(scaled) == pytest.approx(
        statistics.coefficient_of_variation(samples), abs=1e-9
    )
    assert statistics.median_absolute_deviation(scaled) == pytest.approx(
        unit * statistics.median_absolute_deviation(samples), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize(("n", "low_rank"), [(6, 1), (10, 2), (20, 6), (100, 40)])
def test_median_interval_uses_the_ranks_of_the_sign_test_tables(n: int, low_rank: int) -> None:
    samples = [float(i) for i in range(1, n + 1)]
    assert statistics.median_interval(samples) == (low_rank, n + 1 - low_rank)


def test_median_interval_is_refused_where_no_rank_reaches_the_confidence() -> None:
    assert statistics.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_median_interval_covers_the_true_median_at_least_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, hits = np.exp(0), 0
    for _ in range(2000):
        lo, hi = statistics.median_interval(np.exp(rng.normal(size=40)).tolist()) or (0, 0)
        hits += lo <= truth <= hi
    assert hits / 2000 >= 0.94


def test_exact_and_normal_ranks_meet_where_one_takes_over_from_the_other() -> None:
    exact = statistics.median_interval([float(i) for i in range(1000)]) or (0, 0)
    approximate = statistics.median_interval([float(i) for i in range(1001)]) or (0, 0)
    assert abs(exact[0] - approximate[0]) <= 2


def test_a_block_bootstrap_widens_with_autocorrelation_where_a_plain_one_does_not() -> None:
    samples = (10 + autocorrelated(np.random.default_rng(1), 500, rho=0.9)).tolist()

    def width(block_length: int) -> float:
        lo, hi = statistics.block_bootstrap_interval(
            samples, statistic=lambda v: np.median(v, axis=1), block_length=block_length
        )
        return hi - lo

    assert width(40) > 2 * width(1)


def test_a_bootstrap_is_the_same_for_the_same_seed() -> None:
    samples = np.random.default_rng(2).normal(size=50).tolist()
    first, second = (
        statistics.block_bootstrap_interval(samples, statistic=lambda v: v.mean(axis=1), seed=3) for _ in range(2)
    )
    assert first == second


def test_a_spike_is_flagged_and_still_counts_in_the_figures() -> None:
    samples = [1.0, 1.01, 0.99, 1.02, 0.98, 50.0]
    assert statistics.count_outliers(samples) == 1
    assert statistics.coefficient_of_variation(samples) > 1


def test_a_against_a_shows_no_difference_in_at_least_95_of_100_sessions() -> None:
    rng = np.random.default_rng(11)
    verdicts = [statistics.paired_ratio(*host_session(rng), seed=i).significant for i in range(100)]
    assert verdicts.count(False) >= 95


def test_ten_percent_is_found_in_at_least_90_of_100_sessions() -> None:
    rng = np.random.default_rng(12)
    results = [statistics.paired_ratio(*host_session(rng, slower=1.1), seed=i) for i in range(100)]
    assert sum(r.significant and r.ratio > 1 for r in results) >= 90


def test_pairing_within_rounds_beats_the_mood_that_both_share() -> None:
    rng = np.random.default_rng(13)
    baseline, contender = host_session(rng, slower=1.1)
    shuffled = [list(rng.permutation(group)) for group in contender]
    paired = statistics.paired_ratio(baseline, contender)
    unpaired = statistics.paired_ratio(baseline, shuffled)
    assert paired.hi - paired.lo < unpaired.hi - unpaired.lo


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=10), st.floats(0.2, 5.0))
def test_a_ratio_is_scale_free_and_inverts_when_the_sides_swap(times: list[float], scale: float) -> None:
    there = statistics.paired_ratio([[scale * t for t in times]], [times])
    back = statistics.paired_ratio([times], [[scale * t for t in times]])
    assert there.ratio == pytest.approx(scale)
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.lo <= there.ratio <= there.hi


@pytest.mark.parametrize(
    ("baseline", "contender", "match"),
    [
        ([], [], "at least one"),
        ([[1.0]], [[1.0, 2.0]], "same processes and rounds"),
        ([[0.0]], [[1.0]], "not positive"),
    ],
)
def test_blocks_that_do_not_pair_are_refused(baseline: Groups, contender: Groups, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        statistics.paired_ratio(baseline, contender)


def test_waiting_for_a_core_is_contention_and_using_two_is_extra_threads() -> None:
    assert statistics.contention([120] * 5, [100] * 5).contended
    assert not statistics.contention([105] * 5, [100] * 5).contended
    assert statistics.contention([100] * 5, [180] * 5).extra_threads
    assert not statistics.contention([100] * 5, [180] * 5, threads=2).extra_threads


def test_drift_is_a_trend_and_neither_noise_nor_a_spike_is_one() -> None:
    rng = np.random.default_rng(5)
    flat = (1 + 0.1 * rng.normal(size=60)).tolist()
    assert not statistics.drift(flat).drifting
    assert not statistics.drift([*([1.0] * 59), 9.0]).drifting
    rising = statistics.drift([value * (1 + 0.01 * i) for i, value in enumerate(flat)])
    assert rising.drifting
    assert rising.change > 0.3


def test_warm_up_is_over_when_two_tens_agree_within_two_percent() -> None:
    assert not statistics.is_stable([2.0] * 10 + [1.9] * 10)
    assert statistics.is_stable([9.0] * 5 + [1.0] * 10 + [1.015] * 10)
