"""From raw blocks to a Measurement or a PairedRatio: pure, no clock and no process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekd.device_benchmarks import statistics
from edgekd.device_benchmarks.measurement import (
    Block,
    Measurement,
    PairedRatio,
    ProcessFacts,
    Provenance,
    Verdict,
)

_WORST_FIRST: tuple[Verdict, ...] = ("emulated", "fallback", "throttled", "contended", "drifting", "noisy")
CONFIDENCE = 0.99
BOOTSTRAP_SAMPLES = 1000


def summarise(
    name: str, blocks: Sequence[Block], processes: Sequence[ProcessFacts], provenance: Provenance, *, note: str = ""
) -> Measurement:
    """All figures of one contender. Raises: ValueError: no samples."""
    wall_ms = [ns / 1e6 for block in blocks for ns in block.wall_ns]
    cpu_ns = [ns for block in blocks for ns in block.cpu_ns]
    lo, hi = median_hull(blocks)
    first, last = _ends(wall_ms)
    clocks = statistics.contention([ms * 1e6 for ms in wall_ms], cpu_ns, threads=provenance.threads)
    trend = statistics.drift([statistics.median(block.wall_ns) for block in blocks])
    cv = statistics.coefficient_of_variation(wall_ms)
    found = _findings(provenance, clocks, trend, cv, last / first) + _cautions(processes, clocks, cv)
    verdicts = {verdict for verdict, _ in found}
    return Measurement(
        kind="emulated" if provenance.host_start.emulated else "measured",
        name=name,
        p50_ms=statistics.median(wall_ms),
        p90_ms=statistics.percentile(wall_ms, 90),
        p95_ms=statistics.percentile(wall_ms, 95),
        p99_ms=statistics.percentile(wall_ms, 99),
        mean_ms=float(np.mean(wall_ms)),
        min_ms=min(wall_ms),
        ci_lo_ms=lo,
        ci_hi_ms=hi,
        n=len(wall_ms),
        cv=cv,
        mad_ms=statistics.median_absolute_deviation(wall_ms),
        outliers=statistics.count_outliers(wall_ms),
        cpu_p50_ms=statistics.median(cpu_ns) / 1e6,
        wall_over_cpu=clocks.wall_over_cpu,
        drift=trend.change,
        burst_p50_ms=first,
        sustained_p50_ms=last,
        **_of_processes(processes),
        verdict=next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "valid"),
        warnings=tuple(text for _, text in found),
        note=note,
        provenance=provenance,
        processes=tuple(processes),
        blocks=tuple(blocks),
    )


def median_hull(blocks: Sequence[Block]) -> tuple[float, float]:
    """95% interval of the median in ms: the widest of order statistics, block bootstrap, and process medians."""
    wall_ms = [ns / 1e6 for block in blocks for ns in block.wall_ns]
    by_process: dict[int, list[float]] = {}
    for block in blocks:
        by_process.setdefault(block.process, []).extend(ns / 1e6 for ns in block.wall_ns)
    edges = [statistics.median(samples) for samples in by_process.values()]
    edges += statistics.median_interval(wall_ms) or ()
    # A bootstrap of every k-th sample says as much about a median as one of 100,000, and takes no minute.
    step = -(-len(wall_ms) // BOOTSTRAP_SAMPLES)
    length = max(1, max(len(block.wall_ns) for block in blocks) // step)
    edges += statistics.block_bootstrap_interval(
        wall_ms[::step], statistic=lambda values: np.median(values, axis=1), block_length=length
    )
    return min(edges), max(edges)


def _ends(wall_ms: list[float]) -> tuple[float, float]:
    """Medians of the first and the last fifth of the samples."""
    fifth = max(1, len(wall_ms) // 5)
    return statistics.median(wall_ms[:fifth]), statistics.median(wall_ms[-fifth:])


def _findings(
    provenance: Provenance,
    clocks: statistics.Contention,
    trend: statistics.Drift,
    cv: float,
    slowdown: float,
) -> list[tuple[Verdict | None, str]]:
    found: list[tuple[Verdict | None, str]] = []
    if provenance.host_start.emulated:
        found.append(("emulated", "run in an emulator: the times say nothing about any device"))
    if not provenance.cpu_clock:
        found.append((None, "no CPU time is told: whether it waited for a core is not known"))
    if provenance.executed != "runtime":
        found.append(("fallback", f"not the artifact's own runtime: {provenance.executed}"))
    if provenance.mode == "sustained" and slowdown > statistics.THROTTLED_RATIO:
        found.append(("throttled", f"sustained p50 is {slowdown:.2f}x the burst p50"))
    if clocks.contended:
        found.append(("contended", f"wall time is {clocks.wall_over_cpu:.2f}x CPU time: it waited for a core"))
    if trend.drifting:
        found.append(("drifting", f"latency changed by {trend.change:+.0%} from first to last"))
    if cv > statistics.CV_NOISY:
        found.append(("noisy", f"CV {cv:.0%} is over {statistics.CV_NOISY:.0%}"))
    return found


def _cautions(
    processes: Sequence[ProcessFacts], clocks: statistics.Contention, cv: float
) -> list[tuple[Verdict | None, str]]:
    """What is worth saying and does not spoil the figures."""
    found: list[tuple[Verdict | None, str]] = []
    if statistics.CV_WARN < cv <= statistics.CV_NOISY:
        found.append((None, f"CV {cv:.0%} is over {statistics.CV_WARN:.0%}"))
    if clocks.extra_threads:
        found.append((None, f"CPU time is {1 / clocks.wall_over_cpu:.2f}x wall time: more than one thread worked"))
    unsettled = sum(not process.warm_up_converged for process in processes)
    if unsettled:
        found.append((None, f"warm-up did not settle within 2% in {unsettled} of {len(processes)} processes"))
    return found


def _of_processes(processes: Sequence[ProcessFacts]) -> dict[str, Any]:
    medians = {
        name: statistics.median([getattr(p, name) for p in processes]) for name in ("load_ms", "first_inference_ms")
    }
    memory = {
        name: max((v for p in processes if (v := getattr(p, name)) is not None), default=None)
        for name in ("peak_rss_mib", "model_rss_mib", "pss_mib")
    }
    return {**medians, **memory}


def compare(baseline: Measurement, contender: Measurement, *, seed: int = 0) -> PairedRatio:
    """The speed ratio of two contenders of one interleaved set, by wall clock and by CPU time.

    Raises: ValueError: they were not measured in the same rounds.
    """
    wall = _ratio(baseline, contender, "wall_ns", seed)
    cpu = _ratio(baseline, contender, "cpu_ns", seed)
    disagree = _one_thread(baseline, contender) and not (
        1 / (1 + statistics.CLOCK_DISAGREEMENT) <= wall.ratio / cpu.ratio <= 1 + statistics.CLOCK_DISAGREEMENT
    )
    names = (baseline.name, contender.name)
    text = _disagreement(*names, wall, cpu) if disagree else _sentence(*names, wall)
    return PairedRatio(
        baseline=baseline.name,
        contender=contender.name,
        ratio=wall.ratio,
        lo=wall.lo,
        hi=wall.hi,
        n_blocks=wall.n_blocks,
        significant=wall.significant,
        cpu_ratio=cpu.ratio,
        cpu_lo=cpu.lo,
        cpu_hi=cpu.hi,
        cpu_significant=cpu.significant,
        clocks_disagree=disagree,
        confidence=CONFIDENCE,
        text=text,
    )


def _ratio(baseline: Measurement, contender: Measurement, clock: str, seed: int) -> statistics.RatioInterval:
    return statistics.paired_ratio(
        _round_times(baseline, clock), _round_times(contender, clock), confidence=CONFIDENCE, seed=seed
    )


def _round_times(measurement: Measurement, clock: str) -> list[list[float]]:
    """One figure per process and round: the geometric mean of its two blocks' medians (the A and A, or B and B)."""
    legs: dict[int, dict[int, list[float]]] = {}
    for block in measurement.blocks:
        log = float(np.log(max(1.0, statistics.median(getattr(block, clock)))))
        legs.setdefault(block.process, {}).setdefault(block.round, []).append(log)
    return [[float(np.exp(np.mean(logs))) for logs in rounds.values()] for rounds in legs.values()]


def _one_thread(*measurements: Measurement) -> bool:
    """Whether CPU time can stand for wall time: that of several threads adds up."""
    return all(measurement.provenance.threads == 1 for measurement in measurements)


def _sentence(baseline: str, contender: str, found: statistics.RatioInterval) -> str:
    figures = f"99% CI {found.lo:.2f} to {found.hi:.2f}, {found.n_blocks} block pairs"
    if not found.significant:
        return f"no significant difference between {contender} and {baseline} (ratio {found.ratio:.2f}, {figures})"
    if found.ratio >= 1:
        return f"{contender} is {found.ratio:.2f}x as fast as {baseline} ({figures})"
    return f"{contender} is slower: {found.ratio:.2f}x the speed of {baseline} ({figures})"


def _disagreement(baseline: str, contender: str, wall: statistics.RatioInterval, cpu: statistics.RatioInterval) -> str:
    """CPU time leads: on a contended host long runs are pre-empted more than short ones, and wall ratios are biased."""
    by_wall = f"by wall clock {wall.ratio:.2f}x ({wall.lo:.2f} to {wall.hi:.2f})"
    return f"by CPU time, {_sentence(baseline, contender, cpu)}; {by_wall}: the clocks disagree, so wall time is biased"
