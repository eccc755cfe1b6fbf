"""What every step of an export sees: settings, inputs, programs, the folder, and who listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.artifact import Artifact
from edgekd.export import ExportOutcome
from edgekd.export.check import CheckReport
from edgekd.pipeline.events import Events
from edgekd.pipeline.model_export.inputs import ModelInputs
from edgekd.pipeline.model_export.planning import Planned
from edgekd.pipeline.model_export.programs import FLOAT, Programs
from edgekd.pipeline.model_export.request import ModelExportSettings


@dataclass
class Candidate:
    """One wanted artifact and what has become of it so far."""

    planned: Planned
    outcome: ExportOutcome | None = None
    check: CheckReport | None = None

    @property
    def label(self) -> str:
        """Folder and row name."""
        return self.planned.label

    @property
    def artifact(self) -> Artifact | None:
        """What was exported, or None."""
        return self.outcome.artifact if self.outcome is not None else None


@dataclass
class Work:
    """One export in progress."""

    settings: ModelExportSettings
    inputs: ModelInputs
    programs: Programs
    folder: Path
    events: Events
    candidates: list[Candidate] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def program_path(self, name: str) -> Path:
        """Where a program lies."""
        return self.folder / self.programs.facts[name].file

    @property
    def float_program(self) -> Path:
        """What accuracy is compared with."""
        return self.program_path(FLOAT)
