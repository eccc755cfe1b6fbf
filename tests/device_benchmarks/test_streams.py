"""Claims about verdicts on whole simulated sessions: how often they cry wolf, how often they miss a wolf."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.benchmarks.streams import MOODS, Mood, interleaved, levels, raw, summarised
from edgekd.device_benchmarks import statistics
from edgekd.device_benchmarks.comparison import unpaired
from edgekd.device_benchmarks.summary import compare

SESSIONS = 100


@pytest.mark.parametrize("mood", MOODS.values(), ids=MOODS)
def test_a_model_against_itself_differs_in_at_most_5_of_100_sessions(mood: Mood) -> None:
    rng = np.random.default_rng(21)
    found = [raw(interleaved(rng, mood, level_ms={"a": 5.0, "b": 5.0})) for _ in range(SESSIONS)]
    alarms = sum(compare(rows["a"], rows["b"], seed=i).significant for i, rows in enumerate(found))
    assert alarms <= 5


@pytest.mark.parametrize("mood", MOODS.values(), ids=MOODS)
def test_ten_percent_is_found_in_at_least_90_of_100_sessions(mood: Mood) -> None:
    rng = np.random.default_rng(22)
    found = [raw(interleaved(rng, mood, level_ms={"slow": 5.5, "fast": 5.0})) for _ in range(SESSIONS)]
    ratios = [compare(rows["slow"], rows["fast"], seed=i) for i, rows in enumerate(found)]
    assert sum(ratio.significant and ratio.ratio > 1 for ratio in ratios) >= 90
    assert np.median([ratio.ratio for ratio in ratios]) == pytest.approx(1.1, rel=0.01)


@pytest.mark.parametrize("mood", [MOODS["all at once"]], ids=["all at once"])
def test_the_interval_of_a_ratio_holds_the_truth_in_at_least_95_of_100_sessions(mood: Mood) -> None:
    rng = np.random.default_rng(23)
    found = [raw(interleaved(rng, mood, level_ms={"slow": 15.0, "fast": 5.0})) for _ in range(SESSIONS)]
    ratios = [compare(rows["slow"], rows["fast"], seed=i) for i, rows in enumerate(found)]
    assert sum(ratio.lo <= 3 <= ratio.hi for ratio in ratios) >= 95


@pytest.mark.parametrize("sway", [0.0, 0.05])
def test_two_separate_runs_of_one_model_differ_in_at_most_5_of_100(sway: float) -> None:
    """The host's level itself changes by 2% between runs."""
    rng = np.random.default_rng(24)
    alarms = 0
    for i in range(SESSIONS):
        first, second = (
            raw(interleaved(rng, Mood(sway=sway), level_ms={"a": 5.0 * np.exp(rng.normal(0, 0.02))}))["a"]
            for _ in range(2)
        )
        alarms += unpaired(first, second, seed=i).verdict != "no significant difference"
    assert alarms <= 5


def test_two_separate_runs_find_twenty_percent_and_are_wider_than_an_interleaved_one() -> None:
    rng = np.random.default_rng(25)
    found, wider = [], 0
    for i in range(SESSIONS):
        rows = raw(interleaved(rng, Mood(), level_ms={"slow": 6.0, "fast": 5.0}))
        apart, together = unpaired(rows["slow"], rows["fast"], seed=i), compare(rows["slow"], rows["fast"], seed=i)
        found.append(apart.verdict)
        wider += apart.hi / apart.lo > together.hi / together.lo
    assert found.count("faster") >= 90
    assert wider == SESSIONS


def test_the_interval_of_p50_holds_the_true_median_of_autocorrelated_streams() -> None:
    rng = np.random.default_rng(26)
    mood = Mood(sway=0.05, rho=0.9, spikes=0.01)
    rows = [summarised(interleaved(rng, mood, level_ms={"a": 5.0}))["a"] for _ in range(40)]
    assert sum(row.ci_lo_ms <= 5.0 <= row.ci_hi_ms for row in rows) >= 36


def test_p50_stays_and_p99_moves_where_two_in_a_hundred_samples_are_spikes() -> None:
    samples = (5 * levels(np.random.default_rng(27), 5000, Mood(noise=0.01, spikes=0.02))).tolist()
    assert statistics.median(samples) == pytest.approx(5, rel=0.005)
    assert (statistics.percentile(samples, 99) or 0) > 7


def test_a_drift_of_thirty_percent_is_called_one_and_autocorrelation_mostly_is_not() -> None:
    rng = np.random.default_rng(28)

    def verdicts(mood: Mood) -> list[str]:
        return [summarised(interleaved(rng, mood, level_ms={"a": 5.0}))["a"].verdict for _ in range(20)]

    assert verdicts(Mood(drift=0.3)).count("drifting") >= 19
    assert verdicts(Mood()).count("valid") >= 19
    assert verdicts(Mood(sway=0.03)).count("drifting") <= 4
