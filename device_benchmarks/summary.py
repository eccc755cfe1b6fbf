"""From raw blocks to a Measurement or a PairedRatio: pure, no clock and no process."""

from __future__ import annotations

import math
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
    SeparateRun,
    Verdict,
)
from edgekd.device_benchmarks.throttling import clock_drop, reported_throttling
from edgekd.statistics import Z95

_WORST_FIRST: tuple[Verdict, ...] = ("emulated", "fallback", "throttled", "contended", "drifting", "noisy")
CONFIDENCE = 0.99
BOOTSTRAP_SAMPLES = 1000


def summarise(
    name: str,
    blocks: Sequence[Block],
    processes: Sequence[ProcessFacts],
    provenance: Provenance,
    *,
    note: str = "",
    apart: SeparateRun | None = None,
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
    slowed = (reported_throttling(provenance.host_start, provenance.host_end), clock_drop(blocks))
    found += [("throttled", text) for text in slowed if text]
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
        **_cold_start([*processes, *([apart] if apart else [])]),
        **_memory(processes, apart),
        verdict=next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "valid"),
        warnings=tuple(text for _, text in found),
        note=note,
        provenance=provenance,
        processes=tuple(processes),
        blocks=tuple(blocks),
        separate_run=apart,
    )


def median_hull(blocks: Sequence[Block]) -> tuple[float, float]:
    """95% interval of the median in ms: the widest of order statistics, block bootstrap, and process medians, both with
    the samples' autocorrelation; and what other processes would have added to it.
    """
    wall_ms = [ns / 1e6 for block in blocks for ns in block.wall_ns]
    by_process: dict[int, list[float]] = {}
    for block in blocks:
        by_process.setdefault(block.process, []).extend(ns / 1e6 for ns in block.wall_ns)
    edges = [statistics.median(samples) for samples in by_process.values()]
    together = statistics.autocorrelation_samples(wall_ms)
    edges += statistics.median_interval(wall_ms, autocorrelation_samples=together) or ()
    # A bootstrap of every k-th sample says as much about a median as one of 100,000, and takes no minute.
    step = -(-len(wall_ms) // BOOTSTRAP_SAMPLES)
    length = max(1, max(len(block.wall_ns) for block in blocks) // step, round(2 * together / step))
    edges += statistics.block_bootstrap_interval(
        wall_ms[::step], statistic=lambda values: np.median(values, axis=1), block_length=length
    )
    return _with_processes_unseen(min(edges), max(edges), p50=statistics.median(wall_ms), n=len(by_process))


def _with_processes_unseen(lo: float, hi: float, *, p50: float, n: int) -> tuple[float, float]:
    """Wider by what the memory layout of n processes may have shifted all their samples by."""
    shift = Z95 * p50 * statistics.PROCESS_LOG_SD / math.sqrt(2 * n)
    return p50 - math.hypot(p50 - lo, shift), p50 + math.hypot(hi - p50, shift)


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


def _cold_start(starts: Sequence[ProcessFacts | SeparateRun]) -> dict[str, Any]:
    """Medians over fresh processes."""
    compiled = [start.compile_ms for start in starts if start.compile_ms is not None]
    return {
        "load_ms": statistics.median([start.load_ms for start in starts]),
        "compile_ms": statistics.median(compiled) if compiled else None,
        "first_inference_ms": statistics.median([start.first_inference_ms for start in starts]),
        "cold_starts": len(starts),
    }


def _memory(processes: Sequence[ProcessFacts], apart: SeparateRun | None) -> dict[str, Any]:
    sources: Sequence[ProcessFacts | SeparateRun] = [apart] if apart else processes
    found: dict[str, Any] = {
        name: max((v for source in sources if (v := getattr(source, name)) is not None), default=None)
        for name in ("peak_rss_mib", "model_rss_mib", "pss_mib")
    }
    return {**found, "energy_mj": apart.energy_mj, "energy_note": apart.energy_note} if apart else found


def compare(baseline: Measurement, contender: Measurement, *, seed: int = 0) -> PairedRatio:
    """The speed ratio of two contenders of one interleaved set, by wall clock and by CPU time.

    Raises: ValueError: they were not measured in the same rounds.
    """
    wall = _ratio(baseline, contender, "wall_ns", seed)
    cpu = _ratio(baseline, contender, "cpu_ns", seed)
    disagree = _one_thread(baseline, contender) and (
        not 1 / (1 + statistics.CLOCK_DISAGREEMENT) <= wall.ratio / cpu.ratio <= 1 + statistics.CLOCK_DISAGREEMENT
        or any(_waited(row) for row in (baseline, contender))
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


def _waited(measurement: Measurement) -> bool:
    """Whether it waited for a core: its wall time is that of its neighbours too, in both halves of a ratio."""
    blocks = measurement.blocks
    wall, cpu = ([ns for block in blocks for ns in getattr(block, clock)] for clock in ("wall_ns", "cpu_ns"))
    return statistics.contention(wall, cpu).contended


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
