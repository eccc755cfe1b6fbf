"""Hard-label distillation: the teacher's decision taken for a label.

Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention"
(2012.12877), equation 3.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import same_classes, share
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs


class HardLabel(Loss):
    """Cross-entropy with argmax of the teacher's logits, in nats.

    student_tap: where the student's second head is, as the distillation token's (`head_dist` in timm); None: its
    logits. DeiT weighs it 0.5 beside a cross-entropy with the labels of 0.5 [its paper and code].
    Raises: ValueError: label_smoothing is outside [0, 1].
    """

    name: ClassVar[str] = "hard_label"
    published_weight: ClassVar[float] = 0.5

    def __init__(self, student_tap: str | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        share(label_smoothing=label_smoothing)
        self.student_tap, self.label_smoothing = student_tap, label_smoothing

    def needs(self) -> Needs:
        """The student's second head, where it has one."""
        return Needs((self.student_tap,)) if self.student_tap else Needs()

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: the two have different classes."""
        same_classes(Signals(self._logits(student)), teacher)

    def _logits(self, student: Signals) -> Tensor:
        return student.taps[self.student_tap] if self.student_tap else student.logits

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        target = teacher.logits.argmax(1)
        loss = functional.cross_entropy(self._logits(student), target, label_smoothing=self.label_smoothing)
        # The argmax of nan is a class like any other: a broken teacher must not pass for one that decides.
        return loss.masked_fill(teacher.logits.isnan().any(), float("nan"))
