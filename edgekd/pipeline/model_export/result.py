"""The result of one export as one typed document: what export.json holds and `--json` prints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Artifact, Frozen, Precision
from edgekd.export.check import CheckReport
from edgekd.pipeline.model_export.choosing import Choice
from edgekd.pipeline.model_export.measuring import Latency
from edgekd.pipeline.model_export.programs import ProgramFacts
from edgekd.pipeline.model_export.proving import Diagnosis
from edgekd.pipeline.model_export.request import ModelExportSettings

State = Literal["exported-and-checked", "check-failed", "not-exported"]


class ModelFacts(Frozen):
    """What was exported. sha256: of the file that holds the weights."""

    name: str
    sha256: str
    parameters: int
    image_shape: tuple[int, int, int]
    outputs: tuple[str, ...]


class DataFacts(Frozen):
    """The images it was calibrated and checked on, and how they become the model's input."""

    name: str
    fingerprint: str
    classes: int
    preprocessing: dict[str, object]
    train_images: int
    test_images: int


class ExportRow(Frozen):
    """One target at one precision. refused: it was never tried, because it is not legal or not installed.

    artifact.path is relative to the export's folder. float_layers: layers of the int8 program left in float.
    calibration_sha256: of the images that gave the ranges, "" for float. chosen: by `--precision auto`.
    """

    label: str
    target: str
    precision: Precision
    state: State
    refused: bool = False
    reason: str = ""
    program: str = ""
    float_layers: tuple[str, ...] = ()
    artifact: Artifact | None = None
    cached: bool = False
    export_s: float = 0.0
    log: str = ""
    check: CheckReport | None = None
    latency: Latency | None = None
    calibration_sha256: str = ""
    chosen: bool = False


class ExportDocument(Frozen):
    """One `edgekd export`. seconds: wall time by step."""

    schema_version: Literal[1] = 1
    kind: Literal["model-export"] = "model-export"
    model: ModelFacts
    data: DataFacts
    settings: ModelExportSettings
    programs: tuple[ProgramFacts, ...]
    rows: tuple[ExportRow, ...]
    choices: tuple[Choice, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    notes: tuple[str, ...] = ()
    host: dict[str, object] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether something did not come out right, or all was refused; with `auto`, whether a target has no choice."""
        if all(row.refused for row in self.rows):
            return True
        if self.choices:
            targets = {row.target for row in self.rows if not row.refused}
            return any(choice.label == "" for choice in self.choices if choice.target in targets)
        fixed = {(row.target, row.precision) for row in self.rows if row.state == "exported-and-checked"}
        wrong = (row for row in self.rows if row.state != "exported-and-checked" and not row.refused)
        return any((row.target, row.precision) not in fixed for row in wrong)
