"""What a measurement says, as frozen data: figures, their spread, every raw sample, and where they come from."""

from __future__ import annotations

from typing import Literal

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.layers import LayerProfile
from edgekd.errors import CheckError, InputError

Verdict = Literal["valid", "noisy", "contended", "drifting", "throttled", "fallback", "emulated"]
Kind = Literal["measured", "emulated"]


class Block(Frozen):
    """Consecutive runs of one contender: in which fresh process, in which round, and each run's two clocks in ns.

    clock_mhz: of the fastest usable core right after the last run; None where the kernel does not tell.
    """

    process: int
    round: int
    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    clock_mhz: float | None = None


class ProcessFacts(Frozen):
    """What one fresh process of a contender showed. Warm-up samples are kept apart from the measured ones.

    compile_ms: the part of load_ms that was compiling; None where the runtime does not tell them apart.

    model_rss_mib: peak less what the imported runtime took before the model. None: this host does not tell.
    """

    import_ms: float
    load_ms: float
    compile_ms: float | None = None
    first_inference_ms: float
    warm_up_ns: tuple[int, ...]
    warm_up_converged: bool
    peak_rss_mib: float | None
    model_rss_mib: float | None
    pss_mib: float | None
    feed_p50_ms: float | None = None
    read_p50_ms: float | None = None


class SeparateRun(Frozen):
    """A fresh process that timed nothing: memory, energy (mJ of one inference, or None and why), and a cold start."""

    import_ms: float
    load_ms: float
    compile_ms: float | None
    first_inference_ms: float
    peak_rss_mib: float | None
    model_rss_mib: float | None
    pss_mib: float | None
    energy_mj: float | None
    energy_note: str


class Parity(Frozen):
    """Outputs of one file on two machines for one input: the largest difference over the largest reference value.

    holds: within the bar of its kind, 1e-4 for float files and 2% for integer ones (a rounding step here and there).
    """

    max_relative_error: float
    bar: float
    holds: bool
    against: str


class Provenance(Frozen):
    """Enough to measure again: the device's state at both ends, the input, the settings and the command line.

    device: as the user named it; what it is stands in host_start, which is the device's and not this computer's.
    parity: how its outputs differ from this computer's on the same file and input. cpu_clock: False where the tool on
    the device tells no CPU time, and `cpu_ns` repeats the wall clock. precision: of the weights and kernels asked for.
    """

    device: str
    runtime: str
    runtime_version: str | None
    executed: str
    threads: int
    affinity: tuple[int, ...]
    input_shape: tuple[int, ...]
    input_sha256: str
    artifact_sha256: str | None
    mode: str
    seed: int
    processes: int
    command: str
    host_start: HostState
    host_end: HostState
    parity: Parity | None = None
    cpu_clock: bool = True
    precision: str | None = None


class Measurement(Frozen):
    """Latency of one contender at batch 1, in ms, with its evidence. Load, compile (a part of it, where told apart) and
    first inference are the median over `cold_starts` fresh processes. Memory and energy are those of `separate_run`;
    where that was not made (a device that was lost, or tells no memory), memory is the largest of the timed processes.

    p90_ms, p95_ms, p99_ms: None below their sample minimum (64, 130, 662). ci_lo_ms, ci_hi_ms: 95% interval of p50, the
    hull of order-statistic, block-bootstrap and process medians. verdict: "valid", or the worst of `warnings`.
    kind: "emulated" where the device was an emulator: the plumbing and the outputs count then, the times do not.
    """

    kind: Kind = "measured"
    name: str
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float
    min_ms: float
    ci_lo_ms: float
    ci_hi_ms: float
    n: int
    cv: float
    mad_ms: float
    outliers: int
    cpu_p50_ms: float
    wall_over_cpu: float
    drift: float
    burst_p50_ms: float
    sustained_p50_ms: float
    load_ms: float
    compile_ms: float | None = None
    first_inference_ms: float
    cold_starts: int = 0
    peak_rss_mib: float | None
    model_rss_mib: float | None
    pss_mib: float | None
    energy_mj: float | None = None
    energy_note: str = "not measured: no separate run was made"
    verdict: Verdict
    warnings: tuple[str, ...]
    note: str
    provenance: Provenance
    processes: tuple[ProcessFacts, ...]
    blocks: tuple[Block, ...]
    separate_run: SeparateRun | None = None
    layers: LayerProfile | None = None

    @property
    def samples_ns(self) -> tuple[int, ...]:
        """Every wall-clock sample in the order taken; none is ever deleted."""
        return tuple(ns for block in self.blocks for ns in block.wall_ns)


class PairedRatio(Frozen):
    """How many times as fast `contender` is as `baseline`: above 1, faster. From block medians paired within a round.

    lo, hi: 99% interval of the geometric mean; `significant` when it leaves 1 out. The cpu_ figures are the same from
    CPU time; `clocks_disagree` when, on one thread, the two ratios or the two clocks of a contender differ by more than
    10%, as on a contended host, where wall ratios are biased and CPU time is the better judge. text: one sentence,
    which says so.
    """

    baseline: str
    contender: str
    ratio: float
    lo: float
    hi: float
    n_blocks: int
    significant: bool
    cpu_ratio: float
    cpu_lo: float
    cpu_hi: float
    cpu_significant: bool
    clocks_disagree: bool
    confidence: float = 0.99
    text: str


class MeasurementSet(Frozen):
    """One interleaved session: the contenders, the ratios asked for, and who failed, with the reason.

    interruptions: how the link to the device was lost, each time that measuring went on afterwards with the rounds that
    were left. partial: why it did not go on; the whole rounds up to then are here.
    """

    schema_version: Literal[1] = 1
    kind: Kind = "measured"
    mode: str
    seconds: float
    measurements: tuple[Measurement, ...]
    ratios: tuple[PairedRatio, ...]
    failures: dict[str, str]
    interruptions: tuple[str, ...] = ()
    partial: str | None = None

    def measurement(self, name: str) -> Measurement:
        """By the contender's name. Raises: InputError: it is not in the set, or it failed (the reason is given)."""
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement
        raise InputError(self.failures.get(name, f"no contender '{name}' was measured"))

    def latency(self, name: str) -> Measurement:
        """As `measurement`, for a report or a budget. Raises: CheckError: it was timed in an emulator."""
        found = self.measurement(name)
        if found.kind == "emulated":
            raise CheckError("emulated times are no latency", where=name, fix="measure on the device itself")
        return found

    def ratio(self, baseline: str, contender: str) -> PairedRatio | None:
        """The ratio of a pair, or None when it was not asked for or one of the two failed."""
        return next((r for r in self.ratios if (r.baseline, r.contender) == (baseline, contender)), None)
