"""The report's rows about artifacts: what was exported, how it was checked, how fast it ran against what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Precision, TensorSpec
from edgekd.report.base import Document

ArtifactState = Literal["exported-and-checked", "exported-check-failed", "not-exported"]
RatioKey = Literal["teacher-today-to-student", "teacher-best-to-student", "student-float-to-int8"]
Verdict = Literal["valid", "noisy", "throttled", "fallback", "failed"]

RATIO_LABELS: dict[RatioKey, str] = {
    "teacher-today-to-student": "teacher as run today (fp32 eager) → student",
    "teacher-best-to-student": "teacher best export → student",
    "student-float-to-int8": "student float → student quantised",
}


class CheckFigures(Document):
    """What was found when an artifact was compared with the program it came from, on real images.

    agreement: fraction of images with the same top-1. int8_ops: how many of compute_ops (convolutions, matrix products)
    the runtime runs in int8, or the file declares when it cannot run here; None without evidence. convs, int8_convs:
    the convolutions among them, which must all be int8. min_*: the bars that were applied.
    """

    n_images: int = Field(ge=0)
    snr_db: float | None = None
    max_abs_error: float | None = None
    agreement: float | None = Field(default=None, ge=0, le=1)
    top1: float | None = Field(default=None, ge=0, le=1)
    compute_ops: int | None = Field(default=None, ge=0)
    int8_ops: int | None = Field(default=None, ge=0)
    convs: int | None = Field(default=None, ge=0)
    int8_convs: int | None = Field(default=None, ge=0)
    executed: bool
    executed_in: str = ""
    min_snr_db: float | None = None
    min_agreement: float | None = None
    evidence: str = ""
    failures: tuple[str, ...] = ()

    @property
    def int8_share(self) -> float | None:
        """Fraction of the compute ops that run in int8, or None without evidence."""
        if self.int8_ops is None or not self.compute_ops:
            return None
        return self.int8_ops / self.compute_ops


class ArtifactRow(Document):
    """One target at one precision, in one of three states; `reason` says why for the two unhappy ones.

    `path` is relative to the run folder (a file, or a folder for .mlpackage and the Jetson build kit). `program` is the
    stem of the file in `programs/` it was made from ("" is `int8` for int8, else `float`); its parity vectors go by it.
    """

    target: str
    precision: Precision
    state: ArtifactState
    path: str | None = None
    program: str = ""
    size_bytes: int | None = Field(default=None, ge=0)
    sha256: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    check: CheckFigures | None = None
    reason: str = ""
    primary: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`TARGET-PRECISION`, as the folder in `artifacts/` is called."""
        return f"{self.target}-{self.precision}"


class MeasurementRow(Document):
    """A latency measured by running. `samples_ms` is a compact list (a few hundred at most) for the distribution chart.

    on_profile_device: whether it ran on the device of the profile; only then may it decide a budget gate.
    artifact: `TARGET-PRECISION` where an exported file ran, else "".
    """

    kind: Literal["measured"] = "measured"
    name: str
    role: Literal["teacher", "student", "other"] = "other"
    runtime: str
    precision: Precision = "fp32"
    artifact: str = ""
    device: str
    on_profile_device: bool = False
    threads: int | None = Field(default=None, ge=1)
    p50_ms: float = Field(gt=0)
    p90_ms: float | None = None
    p50_lo_ms: float | None = None
    p50_hi_ms: float | None = None
    n: int = Field(ge=1)
    processes: int = Field(default=1, ge=1)
    cv: float | None = Field(default=None, ge=0)
    cpu_p50_ms: float | None = None
    peak_memory_mib: float | None = None
    load_ms: float | None = None
    verdict: Verdict = "valid"
    reasons: tuple[str, ...] = ()
    samples_ms: tuple[float, ...] = ()


class RatioRow(Document):
    """One of the three labelled speedups (above 1: the right-hand side is faster), from interleaved block pairs.

    `ratio` is None when it was not measured; `reason` then says why. `artifact`: the student's artifact that was timed
    (`TARGET-PRECISION`); its speedup counts only when its check passed. on_profile_device: of the attached device.
    """

    key: RatioKey
    ratio: float | None = Field(default=None, gt=0)
    lo: float | None = None
    hi: float | None = None
    n_blocks: int = Field(default=0, ge=0)
    significant: bool = False
    runtime: str = ""
    artifact: str = ""
    device: str = ""
    on_profile_device: bool = False
    reason: str = ""

    @property
    def label(self) -> str:
        """The ratio's name as people read it."""
        return RATIO_LABELS[self.key]
