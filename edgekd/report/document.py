"""The run report as data: everything `report.html`, `bundle.zip` and the gates read, and nothing else.

Plain JSON in, plain JSON out: fractions are 0 to 1, times are milliseconds, memory and sizes carry their unit in the
name, `predicted` and `measured` are different types, NaN and infinity are refused. Paths are relative to the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from edgekd.artifact import Precision
from edgekd.errors import InputError
from edgekd.files import read_json, write_text
from edgekd.report.base import Document
from edgekd.report.rows import ArtifactRow, MeasurementRow, RatioRow
from edgekd.report.transfer import Assessment, DiagnosisRow, Teaching

SCHEMA_VERSION: Final = 1

AccuracyRole = Literal["teacher", "student", "baseline", "quantised", "artifact"]
GateState = Literal["pass", "warn", "fail", "unverified"]
Quantity = Literal["latency_p50_ms", "latency_p90_ms", "peak_memory_mib", "artifact_size_mib", "energy_mj"]


class Budgets(Document):
    """What one inference at batch 1 may cost on the profile's device; `why` says where the figures come from."""

    latency_p90_ms: float = Field(gt=0)
    peak_memory_mib: float = Field(gt=0)
    artifact_size_mib: float = Field(gt=0)
    why: str


class ProfileFacts(Document):
    """The device the student was made for, and the runtime and compute unit that the budgets are about."""

    name: str
    title: str
    unit: str
    runtime: str
    runtime_version: str = ""
    precision: Precision
    precision_why: str
    ram_mib: int = Field(gt=0)
    budgets: Budgets


class TeacherFacts(Document):
    """Who taught. `macs` and `parameters` are None for a black box (a file of another runtime)."""

    name: str
    fingerprint: str
    parameters: int | None = None
    macs: int | None = None
    black_box: bool = False
    note: str = ""


class DataFacts(Document):
    """What was learned from and tested on; val is a held-out part of train. `note` is shown big when not empty."""

    name: str
    classes: tuple[str, ...] = Field(min_length=2)
    n_train: int = Field(ge=1)
    n_val: int = Field(ge=0)
    n_test: int = Field(ge=1)
    fingerprint: str
    note: str = ""

    @property
    def is_subset(self) -> bool:
        """True when the figures are smoke numbers: the accuracy gates then stay unverified.

        >>> facts = dict(name="d", classes=("a", "b"), n_train=9, n_val=1, n_test=5, fingerprint="f")
        >>> DataFacts(**facts, note="subset: smoke numbers only").is_subset, DataFacts(**facts).is_subset
        (True, False)
        """
        return "subset" in self.note.lower()


class StudentFacts(Document):
    """The chosen student: its specification as plain JSON, and its cost for one image."""

    space: str
    summary: str
    spec: dict[str, JsonValue]
    macs: int = Field(ge=0)
    parameters: int = Field(ge=0)
    weights_sha256: str = ""


class Candidate(Document):
    """One student that the search looked at. Latency is predicted on the profile's device, never measured."""

    kind: Literal["predicted"] = "predicted"
    macs: int = Field(ge=0)
    parameters: int = Field(ge=0)
    latency_p50_ms: float = Field(gt=0)
    latency_lo_ms: float | None = None
    latency_hi_ms: float | None = None
    fits: bool = True
    chosen: bool = False
    name: str = ""
    score: float = 0.0
    on_front: bool = False


class Trial(Document):
    """A candidate before training: predicted, and where the device is attached, exported untrained and measured.

    score: the capacity prior. val_top1: held-out accuracy after each round of short distillation.
    """

    name: str
    score: float
    predicted_p90_ms: float | None = None
    measured_p50_ms: float | None = None
    measured_p90_ms: float | None = None
    fits: bool | None = None
    val_top1: tuple[float, ...] = ()
    reason: str = ""


class Predicted(Document):
    """An estimate for the profile's device with its interval; it can only make a budget gate fail or unverified."""

    kind: Literal["predicted"] = "predicted"
    what: str
    quantity: Quantity
    value: float = Field(ge=0)
    lo: float = Field(ge=0)
    hi: float = Field(ge=0)
    provenance: str


class Attached(Document):
    """A device behind ssh or adb that the run measured on, as the user named it. state: what it told of itself.

    reason: why the student was not measured there, "" where it was. unlike: what of it is not as the profile says it.
    """

    name: str
    address: str
    state: dict[str, str] = Field(default_factory=dict)
    reason: str = ""
    unlike: tuple[str, ...] = ()


class Epoch(Document):
    """One pass over the training data: mean loss by term and `total`, validation top-1 as a fraction."""

    epoch: int = Field(ge=0)
    losses: dict[str, float]
    val_top1: float | None = Field(default=None, ge=0, le=1)
    images_per_s: float | None = Field(default=None, ge=0)
    learning_rate: float | None = None


class Training(Document):
    """One training: `distil`, the same student without its teacher (`baseline`), or `quantise` (quantisation-aware)."""

    name: Literal["distil", "baseline", "quantise"]
    epochs: tuple[Epoch, ...]
    seconds: float = Field(ge=0)
    steps: int | None = None
    note: str = ""


class Accuracy(Document):
    """Top-1 on a split, executed in a runtime, with a 95% Wilson interval; all three are fractions.

    `artifact` is `TARGET-PRECISION` when the exported file itself was executed, else "".
    """

    kind: Literal["measured"] = "measured"
    name: str
    role: AccuracyRole
    top1: float = Field(ge=0, le=1)
    lo: float = Field(ge=0, le=1)
    hi: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    split: Literal["test", "val", "train"] = "test"
    runtime: str
    precision: Precision = "fp32"
    artifact: str = ""


class Gate(Document):
    """A quality gate's verdict: `figure` was found, `threshold` was asked, `why` is the reason or the cure.

    warn: missed, but the gate only advises; such a miss does not fail a run (docs/distillation.md says which and why).
    """

    name: str
    state: GateState
    figure: str
    threshold: str
    why: str = ""


class StageRow(Document):
    """A stage of the run: done now, kept from an earlier run, or skipped on request."""

    name: str
    state: str
    seconds: float = Field(ge=0)


class RunReport(Document):
    """A whole run. `created` is ISO 8601 UTC; `command` reproduces it; `preprocessing` is `Preprocessing.to_dict()`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    created: str
    command: str
    seed: int = 0
    profile: ProfileFacts
    teacher: TeacherFacts
    data: DataFacts
    student: StudentFacts
    preprocessing: dict[str, JsonValue]
    plan: tuple[str, ...] = ()
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    trials: tuple[Trial, ...] = ()
    trainings: tuple[Training, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    artifacts: tuple[ArtifactRow, ...] = ()
    measurements: tuple[MeasurementRow, ...] = ()
    ratios: tuple[RatioRow, ...] = ()
    predicted: tuple[Predicted, ...] = ()
    attached: Attached | None = None
    gates: tuple[Gate, ...] = ()
    diagnoses: tuple[DiagnosisRow, ...] = ()
    assessment: Assessment | None = None
    teaching: Teaching | None = None
    stages: tuple[StageRow, ...] = ()
    host: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @field_validator("preprocessing", "recipe")
    @classmethod
    def _finite(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        _refuse_nan(value)
        return value

    def accuracy(self, role: AccuracyRole) -> Accuracy | None:
        """The first test-split accuracy of a role, or None."""
        return next((row for row in self.accuracies if row.role == role and row.split == "test"), None)

    def artifact(self, name: str) -> ArtifactRow | None:
        """The artifact row called `TARGET-PRECISION`, or None."""
        return next((row for row in self.artifacts if row.name == name), None)

    @property
    def primary(self) -> ArtifactRow | None:
        """The artifact that the budgets are about: the one marked primary, else the first that was exported."""
        exported = [row for row in self.artifacts if row.state != "not-exported"]
        return next((row for row in self.artifacts if row.primary), exported[0] if exported else None)


def _refuse_nan(value: Any) -> None:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise ValueError("NaN and infinity are not JSON")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        _refuse_nan(child)


def save(report: RunReport, path: Path) -> Path:
    """Write the report as indented JSON, whole or not at all."""
    return write_text(path, report.model_dump_json(indent=1) + "\n")


def load(path: Path) -> RunReport:
    """Read a report. Raises: InputError: missing, not JSON, another schema version, or a wrong field (named)."""
    return parse(read_json(path), where=path)


def parse(document: Any, *, where: object) -> RunReport:
    """A report from parsed JSON. Raises: InputError: names the first wrong field."""
    if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"report schema version {document.get('schema_version')!r} is not known",
            where=where,
            fix=f"this edgekd reads version {SCHEMA_VERSION}",
        )
    try:
        return RunReport.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "report"
        raise InputError(f"'{key}': {first['msg']}", where=where, fix="write it again with this edgekd") from error
