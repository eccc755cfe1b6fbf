"""`manifest.json`: what a bundle holds and says, as one typed document. Written and read through the same model."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from pydantic import Field, JsonValue, ValidationError

from edgekd.artifact import Artifact, Precision, TensorSpec
from edgekd.errors import InputError
from edgekd.report.base import Document
from edgekd.report.document import Accuracy, DataFacts, Gate, Predicted, ProfileFacts, StudentFacts, TeacherFacts
from edgekd.report.rows import ArtifactState, CheckFigures, MeasurementRow, RatioRow

MANIFEST_NAME: Final = "manifest.json"
FORMAT: Final = "edgekd-bundle"
SCHEMA_VERSION: Final = 1


class FileEntry(Document):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class BundledArtifact(Document):
    """One artifact. `path` is None when it was not shipped (`reason` says why); `golden`: the logits to give."""

    name: str
    target: str
    precision: Precision
    state: ArtifactState
    path: str | None
    golden: str | None
    min_snr_db: float
    min_agreement: float = Field(ge=0, le=1)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    check: CheckFigures | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    def located(self, root: Any) -> Artifact:
        """The artifact as a runtime opens it, unpacked below `root`. Raises: InputError: it was not shipped."""
        if self.path is None:
            raise InputError(f"artifact '{self.name}' was not shipped: {self.reason}")
        return Artifact(
            target=self.target,
            precision=self.precision,
            path=root / PurePosixPath(self.path),
            inputs=self.inputs,
            outputs=self.outputs,
            size_bytes=self.size_bytes or 0,
            sha256=self.sha256 or "",
            notes=self.notes,
        )


class Metrics(Document):
    """Every figure with its n, its interval and its kind, predicted or measured (samples stay in report.json)."""

    accuracies: tuple[Accuracy, ...] = ()
    measurements: tuple[MeasurementRow, ...] = ()
    ratios: tuple[RatioRow, ...] = ()
    predicted: tuple[Predicted, ...] = ()
    gates: tuple[Gate, ...] = ()


class Manifest(Document):
    """The whole document. `files` lists every other file of the bundle, nothing more and nothing less."""

    format: Literal["edgekd-bundle"] = FORMAT
    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    created: str
    command: str
    seed: int
    profile: ProfileFacts
    teacher: TeacherFacts
    data: DataFacts
    student: StudentFacts
    preprocessing: dict[str, JsonValue]
    artifacts: tuple[BundledArtifact, ...]
    metrics: Metrics
    host: dict[str, str]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    files: dict[str, FileEntry]


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from bytes.

    Raises: InputError: not JSON (NaN is not JSON), another format, an unknown schema version, or a wrong field (named).
    """
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=MANIFEST_NAME) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"its format is not '{FORMAT}'", where=MANIFEST_NAME)
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        fix = f"this edgekd reads version {SCHEMA_VERSION}"
        raise InputError(f"schema version {version!r} is not known", where=MANIFEST_NAME, fix=fix)
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"'{key}': {first['msg']}", where=MANIFEST_NAME) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
