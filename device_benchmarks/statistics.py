"""Statistics of latency samples: pure functions, no clock and no process.

Samples on a shared host are autocorrelated, skewed and spiky; nothing here deletes one. An interval is refused (None)
where there are too few samples to stand behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The minima in use for tail percentiles (64 for p90, 662 for p99: MLPerf's early-stopping rule) are both the smallest n
# with q**n <= 0.0013, so the other percentiles follow from the same constant.
TAIL_MISS_PROBABILITY = 0.0013
CV_WARN, CV_NOISY = 0.05, 0.10
CLOCK_DISAGREEMENT = 0.10
DRIFT_FRACTION = 0.05
THROTTLED_RATIO = 1.10
# Two fresh processes of one model differ in memory layout: this much, as a standard deviation of the log of a ratio.
PROCESS_LOG_SD = 0.01
# One host at two times: clock, placement and neighbours change by about this much (standard deviation of the log of a
# run's level) even where it looks idle. Assumed; one run of each cannot show it.
RUN_LOG_SD = 0.02
REPLICATES = 2000


def samples_needed(percentile: float) -> int:
    """Fewest samples that support a percentile at or above the median.

    >>> samples_needed(90), samples_needed(95), samples_needed(99), samples_needed(50)
    (64, 130, 662, 1)
    """
    if not 50 <= percentile < 100:
        raise ValueError(f"percentile must be in [50, 100), got {percentile}")
    return 1 if percentile == 50 else math.ceil(math.log(TAIL_MISS_PROBABILITY) / math.log(percentile / 100))


def percentile(samples: Sequence[float], q: float) -> float | None:
    """The q-th percentile (linear between order statistics), or None below `samples_needed(q)`.

    >>> percentile([3.0, 1.0, 2.0], 50), percentile([3.0, 1.0, 2.0], 90)
    (2.0, None)
    """
    return float(np.percentile(np.asarray(samples, dtype=float), q)) if len(samples) >= samples_needed(q) else None


def median(samples: Sequence[float]) -> float:
    """The median. Raises: ValueError: no samples."""
    if not len(samples):
        raise ValueError("the median of no samples")
    return float(np.median(np.asarray(samples, dtype=float)))


def median_interval(
    samples: Sequence[float], *, confidence: float = 0.95, autocorrelation_samples: float = 1.0
) -> tuple[float, float] | None:
    """Order-statistic confidence interval of the median, or None when n is too small for any (n < 6 at 95%).

    autocorrelation_samples: as `autocorrelation_samples` finds it; n samples then tell as much as n over it.
    >>> median_interval([float(i) for i in range(1, 11)])
    (2.0, 9.0)
    """
    n = len(samples)
    independent = max(min(n, 6), int(n / autocorrelation_samples))
    ordered, rank = np.sort(np.asarray(samples, dtype=float)), _sign_test_rank(independent, (1 - confidence) / 2)
    rank = rank * n // independent if rank >= 1 else 0
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank >= 1 else None


def autocorrelation_samples(samples: Sequence[float]) -> float:
    """How many samples in a row tell as much as one independent one: 1 + 2 x the autocorrelations up to the first that
    noise alone would give. Of ranks, since a spike would drown what the others have in common.

    Source: the integrated autocorrelation time (Sokal 1997); its cut is that of Politis & White 2004.
    >>> autocorrelation_samples([1.0] * 50)
    1.0
    """
    n = len(samples)
    ranks = np.argsort(np.argsort(np.asarray(samples, dtype=float), kind="stable")).astype(float)
    if n < 10 or float(np.ptp(np.asarray(samples, dtype=float))) == 0:
        return 1.0
    spectrum = np.fft.rfft(ranks - ranks.mean(), 2 * n)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[:n]
    correlation /= correlation[0]
    noise = np.flatnonzero(correlation < 2 * math.sqrt(math.log10(n) / n))
    return float(1 + 2 * correlation[1 : int(noise[0]) if len(noise) else n].sum())


def _sign_test_rank(n: int, tail: float) -> int:
    """Largest r with P(Binomial(n, 1/2) < r) <= tail; 0 when there is none."""
    if n > 1000:
        return int(n / 2 + NormalDist().inv_cdf(tail) * math.sqrt(n) / 2)
    below, rank = 0, 0
    while rank < n and (below + math.comb(n, rank)) <= tail * 2**n:
        below += math.comb(n, rank)
        rank += 1
    return rank


def median_absolute_deviation(samples: Sequence[float]) -> float:
    """Median of |x - median(x)|, in the samples' unit.

    >>> median_absolute_deviation([1.0, 2.0, 3.0, 100.0])
    1.0
    """
    values = np.asarray(samples, dtype=float)
    return median(np.abs(values - np.median(values)).tolist())


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Standard deviation over mean; 0 for fewer than two samples."""
    values = np.asarray(samples, dtype=float)
    return float(values.std(ddof=1) / values.mean()) if len(values) > 1 and values.mean() > 0 else 0.0


def count_outliers(samples: Sequence[float]) -> int:
    """How many samples lie more than 3 MAD from the median: flagged, never deleted.

    >>> count_outliers([1.0, 1.1, 0.9, 1.05, 9.0])
    1
    """
    values = np.asarray(samples, dtype=float)
    return int((np.abs(values - np.median(values)) > 3 * median_absolute_deviation(samples)).sum())


def block_bootstrap_interval(
    samples: Sequence[float],
    *,
    statistic: Callable[[Floats], Floats],
    block_length: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval from circular moving blocks, which keep the samples' autocorrelation.

    statistic: maps (replicates, n) to (replicates,). block_length: samples; default n**(1/3).
    Source: Politis & Romano 1992. Raises: ValueError: no samples.
    """
    values = np.asarray(samples, dtype=float)
    if not len(values):
        raise ValueError("a bootstrap of no samples")
    rng, chunk = np.random.default_rng(seed), max(1, 2_000_000 // len(values))
    parts = [
        statistic(_resample_blocks(values, min(chunk, REPLICATES - start), block_length, rng))
        for start in range(0, REPLICATES, chunk)
    ]
    return _central(np.concatenate(parts), confidence)


def _resample_blocks(values: Floats, replicates: int, block_length: int | None, rng: np.random.Generator) -> Floats:
    n = len(values)
    length = min(n, block_length or max(1, round(n ** (1 / 3))))
    starts = rng.integers(0, n, size=(replicates, -(-n // length)))
    index = (starts[:, :, None] + np.arange(length)).reshape(replicates, -1)[:, :n] % n
    return np.asarray(values[index])


def _central(replicates: Floats, confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    lo, hi = np.percentile(replicates, [tail, 100 - tail])
    return float(lo), float(hi)


@dataclass(frozen=True)
class RatioInterval:
    """Geometric mean of paired block ratios with its interval; `significant` when the interval leaves 1 out."""

    ratio: float
    lo: float
    hi: float
    n_blocks: int
    significant: bool


def paired_ratio(
    baseline: Sequence[Sequence[float]],
    contender: Sequence[Sequence[float]],
    *,
    confidence: float = 0.99,
    process_log_sd: float = PROCESS_LOG_SD,
    seed: int = 0,
) -> RatioInterval:
    """baseline / contender, from block medians paired within a round: above 1 the contender is faster.

    Outer sequences are fresh processes, inner ones rounds; both sides pair up position by position. The interval
    resamples processes, then moving blocks of rounds; each process carries `process_log_sd`, since a handful of
    processes cannot show that spread themselves. 99%, so that an A/A comparison cries wolf about once in a hundred.
    Raises: ValueError: nothing to pair, unequal lengths, or a time that is not positive.

    >>> paired_ratio([[2.0, 2.2, 2.1], [2.0, 2.1, 2.2]], [[1.0, 1.1, 1.05], [1.0, 1.05, 1.1]]).ratio
    2.0
    """
    groups = _log_ratios(baseline, contender)
    rng = np.random.default_rng(seed)
    inner = np.stack([_bootstrap_means(group, rng) for group in groups])
    chosen = rng.integers(0, len(groups), size=(len(groups), REPLICATES))
    drawn = inner[chosen, rng.integers(0, REPLICATES, size=chosen.shape)]
    drawn = drawn + rng.normal(0, process_log_sd, size=chosen.shape)
    lo, hi = _central(drawn.mean(axis=0), confidence)
    centre = float(np.mean([group.mean() for group in groups]))
    lo, hi = math.exp(min(lo, centre)), math.exp(max(hi, centre))
    return RatioInterval(math.exp(centre), lo, hi, sum(map(len, groups)), significant=not lo <= 1 <= hi)


def _log_ratios(baseline: Sequence[Sequence[float]], contender: Sequence[Sequence[float]]) -> list[Floats]:
    if not len(baseline) or [len(b) for b in baseline] != [len(c) for c in contender] or not all(map(len, baseline)):
        raise ValueError("paired blocks need the same processes and rounds on both sides, and at least one of each")
    groups = [np.asarray([b, c], dtype=float) for b, c in zip(baseline, contender, strict=True)]
    if any((group <= 0).any() for group in groups):
        raise ValueError("a block's time is not positive")
    return [np.log(group[0]) - np.log(group[1]) for group in groups]


def _bootstrap_means(values: Floats, rng: np.random.Generator) -> Floats:
    n, centre = len(values), values.mean()
    means = _resample_blocks(values, REPLICATES, None, rng).mean(axis=1)
    # A bootstrap mean of n values is too narrow by sqrt((n - 1) / n), which shows at the 6 rounds of a quick run.
    return np.asarray(centre + (means - centre) * math.sqrt(n / max(1, n - 1)))


def unpaired_ratio(
    baseline: Sequence[Sequence[float]],
    contender: Sequence[Sequence[float]],
    *,
    confidence: float = 0.99,
    process_log_sd: float = PROCESS_LOG_SD,
    run_log_sd: float = RUN_LOG_SD,
    seed: int = 0,
) -> RatioInterval:
    """baseline / contender from two separate runs; the sides need not have the same processes or blocks.

    Each side resamples its processes, then moving blocks of its block medians, and carries `run_log_sd` besides, so the
    interval is wider than `paired_ratio`'s: what changed between the runs cannot be told from the model.
    Raises: ValueError: a side is empty, or a time is not positive.

    >>> unpaired_ratio([[2.0, 2.0, 2.0]], [[1.0, 1.0]]).ratio
    2.0
    """
    rng = np.random.default_rng(seed)
    (left, spread), (right, other) = (_run_level(side, process_log_sd, rng) for side in (baseline, contender))
    centre = left - right
    drawn = centre + spread - other + rng.normal(0, math.sqrt(2) * run_log_sd, REPLICATES)
    lo, hi = _central(drawn, confidence)
    lo, hi = math.exp(min(lo, centre)), math.exp(max(hi, centre))
    n_blocks = sum(map(len, baseline)) + sum(map(len, contender))
    return RatioInterval(math.exp(centre), lo, hi, n_blocks, significant=not lo <= 1 <= hi)


def _run_level(run: Sequence[Sequence[float]], process_log_sd: float, rng: np.random.Generator) -> tuple[float, Floats]:
    """Log of a run's level (mean over processes of their median block) and the replicates' deviations from it."""
    if not len(run) or not all(map(len, run)):
        raise ValueError("a run needs at least one process with at least one block")
    groups = [np.asarray(process, dtype=float) for process in run]
    if any((group <= 0).any() for group in groups):
        raise ValueError("a block's time is not positive")
    logs = [np.log(group) for group in groups]
    level = float(np.mean([np.median(group) for group in logs]))
    inner = np.stack([np.median(_resample_blocks(group, REPLICATES, None, rng), axis=1) for group in logs])
    chosen = rng.integers(0, len(groups), size=(len(groups), REPLICATES))
    drawn = inner[chosen, rng.integers(0, REPLICATES, size=chosen.shape)]
    drawn = drawn + rng.normal(0, process_log_sd, size=chosen.shape)
    return level, drawn.mean(axis=0) - level


@dataclass(frozen=True)
class Contention:
    """Wall time over CPU time of all runs together. Above 1.1 on one thread, the process waited for a core."""

    wall_over_cpu: float
    contended: bool
    extra_threads: bool


def contention(wall_ns: Sequence[float], cpu_ns: Sequence[float], *, threads: int = 1) -> Contention:
    """Whether wall and CPU clocks agree within 10%. With several threads only the shortfall of CPU time can be told.

    >>> contention([100, 150], [100, 100])
    Contention(wall_over_cpu=1.25, contended=True, extra_threads=False)
    """
    ratio = sum(wall_ns) / max(1.0, float(sum(cpu_ns)))
    extra = threads == 1 and ratio < 1 / (1 + CLOCK_DISAGREEMENT)
    return Contention(ratio, contended=ratio > 1 + CLOCK_DISAGREEMENT, extra_threads=extra)


@dataclass(frozen=True)
class Drift:
    """Change of the last fifth of blocks against the first fifth, as a fraction; and whether it is a trend."""

    change: float
    drifting: bool


def drift(block_medians: Sequence[float]) -> Drift:
    """A trend over time: the ends differ by more than 5% and Mann-Kendall rejects "no trend" at 1%.

    >>> drift([1.0 + 0.02 * i for i in range(20)]).drifting, drift([1.0, 1.2] * 10).drifting
    (True, False)
    """
    values = np.asarray(block_medians, dtype=float)
    if len(values) < 5:
        return Drift(0.0, False)
    fifth = max(1, len(values) // 5)
    change = float(np.median(values[-fifth:]) / np.median(values[:fifth]) - 1)
    return Drift(change, abs(change) > DRIFT_FRACTION and abs(_mann_kendall_z(values)) > 2.576)


def _mann_kendall_z(values: Floats) -> float:
    n = len(values)
    s = float(np.triu(np.sign(values[None, :] - values[:, None]), 1).sum())
    return (s - math.copysign(1, s)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18) if s else 0.0


def is_stable(samples: Sequence[float], *, window: int = 10, tolerance: float = 0.02) -> bool:
    """Whether the medians of the last two windows agree within the tolerance (the warm-up rule).

    >>> is_stable([5.0] * 10 + [1.0] * 10), is_stable([1.0] * 20), is_stable([1.0] * 19)
    (False, True, False)
    """
    if len(samples) < 2 * window:
        return False
    last, before = median(samples[-window:]), median(samples[-2 * window : -window])
    return abs(last - before) <= tolerance * before
