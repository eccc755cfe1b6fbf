"""Cross-entropy with the labels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss


class CrossEntropy(Loss):
    """-log p(label), mean over the batch, in nats; `label_smoothing` is the mass spread evenly over all classes.

    Raises: ValueError: label_smoothing is outside [0, 1).
    """

    name: ClassVar[str] = "cross_entropy"

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes), labels (batch,), or targets (batch, classes) of mixed images -> ()."""
        truth = batch.labels if batch.targets is None else batch.targets.to(student.logits.dtype)
        return functional.cross_entropy(student.logits, truth, label_smoothing=self.label_smoothing)
