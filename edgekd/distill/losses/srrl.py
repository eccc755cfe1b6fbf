"""Softmax regression representation learning: the student's feature must serve the teacher's own classifier.

Source: Yang et al. 2021, "Knowledge Distillation via Softmax Regression Representation Learning" (ICLR, OpenReview
ZzwDy_wiWv).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, several_images
from edgekd.distill.losses.classifier import classifier_of
from edgekd.distill.losses.features import as_vector
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Context, Loss, Needs
from edgekd.errors import InputError


class SRRL(Loss):
    """alpha mean((r(f_s) - f_t)^2) + beta mean((W_t(r(f_s)) - z_t)^2), f pooled features, W_t the teacher's classifier.

    r is linear, batch norm, ReLU. teacher_tap: what its classifier reads, as `fc@in`; classifier: the teacher's, None:
    its last Linear.
    Defaults: alpha 1, beta 1: the SimKD toolbox; mmcls has beta 5.
    Raises: ValueError: alpha or beta is negative. InputError: the teacher has no such classifier.
    """

    name: ClassVar[str] = "srrl"
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        classifier: str | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        not_negative(alpha=alpha, beta=beta)
        self.student_tap, self.teacher_tap, self.classifier = student_tap, teacher_tap, classifier
        self.alpha, self.beta = alpha, beta
        self.transfer: nn.Module = nn.Identity()

    def needs(self) -> Needs:
        """One tap each."""
        return Needs((self.student_tap,), (self.teacher_tap,))

    def prepare(self, context: Context) -> None:
        """A copy of the teacher's classifier, which does not learn."""
        layer = classifier_of(context.teacher, self.classifier, who="srrl: the teacher")
        zeros = torch.zeros(layer.out_features)
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", zeros if layer.bias is None else layer.bias.detach().clone())

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: the tapped feature is not what the classifier reads."""
        several_images(student, self.name)
        mine, theirs = self._vectors(student, teacher)
        if theirs.shape[1] != self.weight.shape[1] or teacher.logits.shape[1] != self.weight.shape[0]:
            reads = f"its classifier maps {self.weight.shape[1]} features to {self.weight.shape[0]} classes"
            raise InputError(f"srrl: teacher tap '{self.teacher_tap}' gives {theirs.shape[1]} features, {reads}")
        width = theirs.shape[1]
        self.transfer = nn.Sequential(nn.Linear(mine.shape[1], width, bias=False), nn.BatchNorm1d(width), nn.ReLU())

    def _vectors(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        return as_vector(student.taps[self.student_tap]), as_vector(teacher.taps[self.teacher_tap])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: features (batch, channels), logits (batch, classes) -> ()."""
        mine, theirs = self._vectors(student, teacher)
        feature = self.transfer(mine)
        logits = functional.linear(feature, self.weight, self.bias)
        mimic, regression = functional.mse_loss(feature, theirs), functional.mse_loss(logits, teacher.logits)
        return self.alpha * mimic + self.beta * regression
