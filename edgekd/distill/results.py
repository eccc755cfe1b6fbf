"""What a stage reports: while it runs (Progress), after each epoch (EpochRecord), at its end (StageResult)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekd.distill.diagnosis import Check
from edgekd.distill.figures import StageFigures


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training images. losses: unweighted mean by term; val_accuracy: share in [0, 1], after it;
    seconds, images_per_s: training alone, without validation."""

    epoch: int
    step: int
    losses: dict[str, float]
    val_accuracy: float
    learning_rate: float
    images_per_s: float
    seconds: float

    def scalars(self) -> dict[str, float]:
        """What a tracker draws: name -> value, the terms as `loss/TERM`."""
        losses = {f"loss/{term}": value for term, value in self.losses.items()}
        kept = ("val_accuracy", "learning_rate", "images_per_s")
        return {**losses, **{name: getattr(self, name) for name in kept}}


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: `step` of `total_steps` done. eta_s counts validation too.

    losses: unweighted, of the newest step, by term. epoch_record: set once, right after an epoch's validation.
    warnings: what the checkup has newly found.
    """

    stage: str
    step: int
    total_steps: int
    epoch: int
    images_per_s: float
    eta_s: float
    losses: Mapping[str, float]
    epoch_record: EpochRecord | None = None
    warnings: tuple[Check, ...] = ()


@dataclass(frozen=True)
class StageResult:
    """A finished stage. val_accuracy: of the last epoch, the headline; best_*: of the epoch kept in best.pt.

    seconds: training and validation, over all resumed parts. precision: what the students were trained in.
    checks: every failure mode looked for, as of the end, and figures what they were decided by; () and None where
    nobody looked (`Stage.diagnose`, or another process did).
    """

    stage: str
    steps: int
    history: tuple[EpochRecord, ...]
    val_accuracy: float
    best_val_accuracy: float
    best_epoch: int
    images_per_s: float
    seconds: float
    device: str
    processes: int
    precision: str
    checks: tuple[Check, ...] = ()
    figures: StageFigures | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "history": [asdict(record) for record in self.history]}
