"""Time every artifact on this host: one thread, interleaved, so that each ratio is of runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.artifact import Frozen, Precision
from edgekd.device_benchmarks.contender import Contender, of_artifact
from edgekd.device_benchmarks.measure import measure_all
from edgekd.device_benchmarks.measurement import MeasurementSet, PairedRatio
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.files import write_json
from edgekd.pipeline.exporting import runs_here
from edgekd.pipeline.model_export.work import Candidate, Work

# Two fresh processes, at least 64 runs each way: enough for a ratio, at about 2 s per contender.
BRIEF = Schedule(
    name="export",
    processes=2,
    rounds=6,
    block_s=0.04,
    runs_min=64,
    block_runs_max=200,
    contender_cap_s=20,
    warm_up_s=0.2,
    warm_up_cap_s=1.0,
)
# What a user gets who opens the float file without options: bf16 where the CPU has it.
OPENVINO_DEFAULT = "openvino-default"
THREADS = 1


class Ratio(Frozen):
    """How many times as fast an artifact is as a baseline of the same runtime, here; 99% interval from lo to hi."""

    baseline: str
    ratio: float
    lo: float
    hi: float


class Latency(Frozen):
    """One artifact on this host. note: why it was not measured, or what must stand beside the numbers."""

    p50_ms: float | None = None
    ci_lo_ms: float | None = None
    ci_hi_ms: float | None = None
    load_ms: float | None = None
    peak_rss_mib: float | None = None
    n: int = 0
    verdict: str = ""
    note: str = ""
    ratios: tuple[Ratio, ...] = ()


class Timing(Frozen):
    """Every artifact's latency by its label, and the set they come from."""

    latencies: dict[str, Latency]
    text: tuple[str, ...] = ()


def measure(work: Work, candidates: Sequence[Candidate], *, file: str = "measurements.json") -> Timing:
    """Latency of every exported artifact that runs here; the samples go to `file`."""
    timed = {c.label: c for c in candidates if c.artifact is not None and measurable(c)}
    if not timed:
        return Timing(latencies={})
    rows = list(timed.values())
    pairs = pairs_of(rows)
    measured = measure_all(
        contenders_of(rows),
        mode=BRIEF,
        threads=THREADS,
        pairs=pairs,
        seed=work.settings.seed,
        keep_going=True,
        on_progress=lambda what, fraction: work.events.progress("measuring", int(100 * fraction), 100, what),
    )
    write_json(work.folder / file, measured.model_dump(mode="json"))
    for ratio in measured.ratios:
        work.events.note(ratio.text)
    return Timing(
        latencies={label: latency_of(measured, label) for label in timed},
        text=tuple(r.text for r in measured.ratios),
    )


def measurable(candidate: Candidate) -> bool:
    """Whether this host times it in its own runtime; a stand-in's or an interpreter's time says nothing."""
    ran = candidate.check is None or candidate.check.executed == "runtime"
    return candidate.artifact is not None and ran and runs_here(candidate.planned.target)


def contenders_of(candidates: Sequence[Candidate]) -> list[Contender]:
    """One per artifact, and OpenVINO's float file as it runs without a hint."""
    found: list[Contender] = []
    for candidate in candidates:
        if candidate.artifact is None:
            continue
        found.append(of_artifact(candidate.artifact, name=candidate.label))
        if (candidate.planned.target, candidate.planned.precision) == ("openvino", "fp32"):
            options = {"inference_precision": "default"}
            found.append(of_artifact(candidate.artifact, name=OPENVINO_DEFAULT, options=options))
    return found


def pairs_of(candidates: Sequence[Candidate]) -> list[tuple[str, str]]:
    """(baseline, contender): each artifact against fp32, and int8 against OpenVINO's default, per runtime."""
    pairs = []
    for candidate in candidates:
        target, precision = candidate.planned.target, candidate.planned.precision
        baselines = [_label_of(candidates, target, "fp32")]
        if target == "openvino" and precision == "int8" and baselines[0] is not None:
            baselines.append(OPENVINO_DEFAULT)
        if candidate.planned.variant:
            baselines.append(_label_of(candidates, target, precision))
        pairs += [(name, candidate.label) for name in baselines if name not in (None, candidate.label)]
        if (target, precision) == ("openvino", "fp32"):
            pairs.append((candidate.label, OPENVINO_DEFAULT))
    return [(baseline, name) for baseline, name in pairs if baseline is not None]


def _label_of(candidates: Sequence[Candidate], target: str, precision: Precision) -> str | None:
    wanted = (target, precision, "")
    found = (c for c in candidates if (c.planned.target, c.planned.precision, c.planned.variant) == wanted)
    return next((c.label for c in found), None)


def latency_of(measured: MeasurementSet, label: str) -> Latency:
    """One contender's figures, with every ratio in which it is the contender."""
    if label in measured.failures:
        return Latency(note=f"not measured: {measured.failures[label]}")
    row = measured.measurement(label)
    return Latency(
        p50_ms=row.p50_ms,
        ci_lo_ms=row.ci_lo_ms,
        ci_hi_ms=row.ci_hi_ms,
        load_ms=row.load_ms,
        peak_rss_mib=row.peak_rss_mib,
        n=row.n,
        verdict=row.verdict,
        note=row.note,
        ratios=tuple(_ratio(r) for r in measured.ratios if r.contender == label),
    )


def _ratio(found: PairedRatio) -> Ratio:
    """CPU time where the wall clock was disturbed by other work: on one thread the two agree on a quiet host."""
    if found.clocks_disagree:
        return Ratio(baseline=found.baseline, ratio=found.cpu_ratio, lo=found.cpu_lo, hi=found.cpu_hi)
    return Ratio(baseline=found.baseline, ratio=found.ratio, lo=found.lo, hi=found.hi)
