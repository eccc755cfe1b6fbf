"""Collaborative multi-teacher distillation: features fused by learned importance, kept meaningful by a classifier.

Source: after Pham et al. 2023, "Collaborative Multi-Teacher Knowledge Distillation for Learning Low Bit-width Deep
Neural Networks" (2210.16103), whose teachers' features are fused by learned importance. The formula below is edgekd's,
for teachers that stand still, and so are its defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, positive
from edgekd.distill.losses.features import as_vector
from edgekd.distill.losses.soft_target import soft_target_kl
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError


class FeatureFusion(Loss):
    """h = sum_k softmax(a)_k R_k N(f_k); CE(C h, y) + T^2 KL(softmax(C h) || student) + match |P N(f_s) - h|^2 (mean).

    N is layer norm without parameters on pooled features; importance a, maps R_k, classifier C and projector P are
    learned. The student learns from h and C h without gradient into them: the classifier alone shapes the fusion, so
    that it cannot collapse to what the student finds easy. Source: a pool; teacher_tap: one `member/tap` a teacher.
    Defaults: dimensions 128, T 4, match 1: edgekd.
    Raises: InputError: fewer than two teacher taps. ValueError: a value out of its range.
    """

    name: ClassVar[str] = "feature_fusion"

    def __init__(
        self,
        student_tap: str,
        teacher_tap: Sequence[str],
        *,
        dimensions: int = 128,
        temperature: float = 4.0,
        match: float = 1.0,
    ) -> None:
        super().__init__()
        positive(dimensions=dimensions, temperature=temperature)
        not_negative(match=match)
        self.student_tap, self.teacher_taps = student_tap, tuple(teacher_tap)
        if isinstance(teacher_tap, str) or len(self.teacher_taps) < 2:
            raise InputError("feature_fusion got one teacher tap", fix="give a list, MEMBER/TAP for each of the pool")
        self.dimensions, self.temperature, self.match = dimensions, temperature, match
        self.importance = nn.Parameter(torch.zeros(len(self.teacher_taps)))
        self.maps = nn.ModuleList()
        self.classifier: nn.Module = nn.Identity()
        self.projector: nn.Module = nn.Identity()

    def needs(self) -> Needs:
        """The student's feature and one of each teacher."""
        return Needs((self.student_tap,), self.teacher_taps)

    def build(self, student: Signals, teacher: Signals) -> None:
        """Maps, classifier and projector of the real widths."""
        widths = [as_vector(teacher.taps[tap], f"teacher tap '{tap}'").shape[1] for tap in self.teacher_taps]
        self.maps = nn.ModuleList([nn.Linear(width, self.dimensions) for width in widths])
        self.classifier = nn.Linear(self.dimensions, student.logits.shape[1])
        self.projector = nn.Linear(as_vector(student.taps[self.student_tap]).shape[1], self.dimensions)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes), any features -> ()."""
        parts = [change(_normal(teacher.taps[tap])) for change, tap in zip(self.maps, self.teacher_taps, strict=True)]
        fused = torch.einsum("k,kbd->bd", self.importance.softmax(0), torch.stack(parts))
        answer = self.classifier(fused)
        truth = batch.labels if batch.targets is None else batch.targets
        learned = functional.cross_entropy(answer, truth)
        taught = soft_target_kl(student.logits, answer.detach(), temperature=self.temperature)
        near = functional.mse_loss(self.projector(_normal(student.taps[self.student_tap])), fused.detach())
        return learned + taught + self.match * near


def _normal(feature: Tensor) -> Tensor:
    vector = as_vector(feature)
    return functional.layer_norm(vector, vector.shape[1:])
