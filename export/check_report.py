"""What a check says and what it must reach: bars, figures and failures as frozen data. Nothing is run here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Frozen, Precision
from edgekd.runtimes.session import Executed, OpReport

NAMES_SHOWN = 5
INT8_MACS_SHARE = 0.95
# How much further from the float model an int8 file that computes in fp16 may be than its program is.
FURTHER_DB, LESS_AGREEMENT = 1.0, 0.02
# A difference that chance gives more often than this shows nothing.
CHANCE = 0.05


class CheckBars(Frozen):
    """What an artifact must reach. int8_macs_share: part of the multiply-adds that run in int8."""

    snr_db: float
    top1_agreement: float = Field(default=0.99, ge=0, le=1)
    int8_macs_share: float = Field(default=0.0, ge=0, le=1)


def bars_for(precision: Precision, *, fp16_compute: bool = False) -> CheckBars:
    """The bars of a precision.

    fp32: 60 dB (runtimes reorder sums; 100 dB and more is usual). fp16: 50 dB where only weights are fp16, 40 dB where
    the operators' values are too (63 dB was measured for both on a small net; deep nets lose more to rounding).
    int8: 30 dB against the converted program (36-47 dB measured; rounding flips at the borders of the grid), and 98%
    agreement, because a flip of one step decides between two classes that are alike to the program. w8 is compared with
    the float program, so its bars are a quantisation's (25 dB, 98%); the paired accuracy says what it costs.
    int8 whose operators compute in fp16 (Core ML): fp16 has 11 digits for codes of 8, so 2 to 6% of an operator's codes
    land one step further, from the input on, and few nets can be followed to 30 dB. Such a file may instead be as near
    to the float model as its program is, within FURTHER_DB, and within LESS_AGREEMENT or what chance explains.

    >>> bars_for("fp16", fp16_compute=True).snr_db, bars_for("int8").int8_macs_share
    (40.0, 0.95)
    """
    if precision == "fp32":
        return CheckBars(snr_db=60.0)
    if precision == "w8":
        return CheckBars(snr_db=25.0, top1_agreement=0.98)
    if precision == "fp16":
        return CheckBars(snr_db=40.0 if fp16_compute else 50.0)
    return CheckBars(snr_db=30.0, top1_agreement=0.98, int8_macs_share=INT8_MACS_SHARE)


class OutputParity(Frozen):
    """One output of an artifact against its program's: signal to noise in dB (200: identical), largest difference."""

    name: str
    shape: tuple[int, ...]
    snr_db: float
    max_abs_error: float


class FromFloat(Frozen):
    """How near an int8 artifact and its program are to the float model, on the parity images.

    snr_db, program_snr_db: of the output where the artifact is worst beside its program. top1_agreement,
    program_top1_agreement: of the first output; None where it names no class. p_value: McNemar's exact test that the
    two agree with the float model alike; None where an output names no class, or one for every pixel.
    """

    snr_db: float
    program_snr_db: float
    top1_agreement: float | None = None
    program_top1_agreement: float | None = None
    p_value: float | None = None

    @property
    def answers_alike(self) -> bool:
        """Whether the artifact gives about as many of the float model's answers as its program."""
        fewer = (self.program_top1_agreement or 0.0) - (self.top1_agreement or 0.0)
        return fewer <= LESS_AGREEMENT or (self.p_value is not None and self.p_value >= CHANCE)

    def __str__(self) -> str:
        text = f"{self.snr_db:.1f} dB of the float model where its program keeps {self.program_snr_db:.1f}"
        if self.top1_agreement is None or self.program_top1_agreement is None:
            return text
        chance = "" if self.p_value is None else f" (p {self.p_value:.2g})"
        answers = f"{self.top1_agreement:.2%} of its answers where that keeps {self.program_top1_agreement:.2%}"
        return f"{text}, {answers}{chance}"


class PairedAccuracy(Frozen):
    """An artifact and its float model on the same n images.

    loss_points: how many points of top-1 accuracy the artifact is below (negative: above). lost: images that only the
    float model has right; gained: only the artifact. p_value: McNemar's exact test that the two are alike.
    """

    n: int
    baseline_top1: float
    loss_points: float
    lost: int
    gained: int
    p_value: float


class CheckReport(Frozen):
    """What was found. A number is None where the artifact gave no outputs to compute it from.

    float32_snr_db: of the worst output, what torch's float32 keeps of an int8 program in float64: where that is little,
    one code more or less decides, and no runtime can be near. from_float: of an int8 artifact whose float program was
    given.
    n_images: images of the parity figures: snr_db (signal to noise, 200 = identical) and max_abs_error of the output
    that is furthest off, which worst_output names; outputs has every one. top1_agreement: part of the images where
    artifact and reference name the same class (of the pixels, where the first output is an image of classes).
    n_accuracy_images: images of accuracy_top1 (the artifact), its Wilson interval, reference_accuracy_top1 (the program
    it was made from) and paired (against the float model).
    executed, note: what stood for the runtime. evidence: what the graph is made of; int8_share: part of the
    convolutions and matrix products in int8; int8_macs_share: of their multiply-adds, None where the graph does not
    tell. load_ms: opening the artifact, second time in a fresh process. wall_s: the whole check.
    """

    target: str
    precision: Precision
    passed: bool
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    executed: Executed = "not-executed"
    note: str = ""
    n_images: int = 0
    snr_db: float | None = None
    max_abs_error: float | None = None
    float32_snr_db: float | None = None
    from_float: FromFloat | None = None
    outputs: tuple[OutputParity, ...] = ()
    worst_output: str = ""
    top1_agreement: float | None = None
    agreement_over: Literal["images", "pixels"] = "images"
    n_accuracy_images: int = 0
    accuracy_top1: float | None = None
    accuracy_ci95: tuple[float, float] | None = None
    reference_accuracy_top1: float | None = None
    paired: PairedAccuracy | None = None
    evidence: OpReport | None = None
    int8_share: float | None = None
    int8_macs_share: float | None = None
    load_ms: float | None = None
    size_bytes: int = 0
    wall_s: float = 0.0

    @property
    def fp16_compute(self) -> bool:
        """Whether its operators compute in fp16."""
        return self.evidence is not None and self.evidence.fp16_compute

    @property
    def holds_signal(self) -> bool:
        """Whether the signal to noise of the outputs is over its bar, whatever the agreement."""
        return self.snr_db is not None and self.snr_db >= _own_bars(self).snr_db

    @property
    def under_parity(self) -> bool:
        """Whether it ran and its outputs are too far from its program's: what a bisection can explain."""
        return bool(_parity_failures(self, _own_bars(self)))


def failures_of(report: CheckReport, bars: CheckBars | None = None) -> tuple[str, ...]:
    """What of a report is under the bars, one sentence each."""
    limits = bars or _own_bars(report)
    failures = _parity_failures(report, limits)
    if limits.int8_macs_share and report.evidence is not None:
        not_int8 = why_not_int8(report.evidence, least_share=limits.int8_macs_share)
        failures += [not_int8] if not_int8 else []
    return tuple(failures)


def warnings_of(report: CheckReport, bars: CheckBars | None = None) -> tuple[str, ...]:
    """What is under the bars and holds all the same, because the file is as near to the float model as its program."""
    under = _under_parity(report, bars or _own_bars(report))
    if not under or not _near_enough(report):
        return ()
    return (f"{'; '.join(under)}: fp16 arithmetic moves codes; it keeps {report.from_float}",)


def applied_bars(report: CheckReport) -> CheckBars:
    """The bars that a report was held against, for whoever runs the file again.

    Of a file that holds beside the float model they are what it keeps of its program, less what it may be further off.
    """
    bars, snr_db, agreement = _own_bars(report), report.snr_db, report.top1_agreement
    if snr_db is None or not warnings_of(report):
        return bars
    least = bars.top1_agreement if agreement is None else min(bars.top1_agreement, agreement - LESS_AGREEMENT)
    lower = {"snr_db": min(bars.snr_db, snr_db - FURTHER_DB), "top1_agreement": max(least, 0.0)}
    return bars.model_copy(update=lower)


def _own_bars(report: CheckReport) -> CheckBars:
    return bars_for(report.precision, fp16_compute=report.fp16_compute)


def _parity_failures(report: CheckReport, limits: CheckBars) -> list[str]:
    return [] if _near_enough(report) else _under_parity(report, limits)


def _near_enough(report: CheckReport) -> bool:
    """Whether an int8 file that computes in fp16 is as near to the float model as its program is."""
    found = report.from_float
    if found is None or not report.fp16_compute:
        return False
    return found.answers_alike and found.snr_db >= found.program_snr_db - FURTHER_DB


def _under_parity(report: CheckReport, limits: CheckBars) -> list[str]:
    failures = []
    which = f" of output '{report.worst_output}'" if len(report.outputs) > 1 else ""
    if report.snr_db is not None and report.snr_db < limits.snr_db:
        own = report.float32_snr_db
        chaos = f"; torch's own float32 keeps {own:.1f} dB" if own is not None and own < limits.snr_db else ""
        failures.append(
            f"parity{which} {report.snr_db:.1f} dB is under {limits.snr_db:g} dB (on {report.n_images} images{chaos})"
        )
    if report.top1_agreement is not None and report.top1_agreement < limits.top1_agreement:
        agreement = f"top-1 agreement {report.top1_agreement:.4f} is under {limits.top1_agreement:g}"
        failures.append(f"{agreement} (on {report.n_images} images)")
    return failures


def why_not_int8(evidence: OpReport, *, least_share: float = INT8_MACS_SHARE) -> str | None:
    """Which operators keep too many multiply-adds in float, or None when enough of them run in int8.

    Where a graph does not tell shapes, all convolutions must be int8 (matrix products, where it has no convolution).

    >>> why_not_int8(OpReport(ops={}, compute_ops=0, int8_compute_ops=0))
    'no convolution or matrix product was found, so nothing proves int8'
    """
    if evidence.compute_ops == 0:
        return "no convolution or matrix product was found, so nothing proves int8"
    if not evidence.macs:
        return _why_not_by_count(evidence)
    if evidence.int8_macs_share >= least_share:
        return None
    names = evidence.float_convs + evidence.float_linears
    share = f"{evidence.int8_macs_share:.1%} of the multiply-adds run in int8, under {least_share:.0%}"
    return f"{share}; in float: {_named(names)} ({evidence.source})"


def _why_not_by_count(evidence: OpReport) -> str | None:
    kind = "convolutions" if evidence.convs else "matrix products"
    total = evidence.convs or evidence.compute_ops
    missing = total - (evidence.int8_convs if evidence.convs else evidence.int8_compute_ops)
    names = evidence.float_convs if evidence.convs else evidence.float_linears
    return f"{missing} of {total} {kind} are not int8: {_named(names)} ({evidence.source})" if missing else None


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
