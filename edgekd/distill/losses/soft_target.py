"""Soft targets: the student matches the teacher's softened class distribution.

Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss
from edgekd.errors import InputError


def soft_target_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) between softened class distributions, times T^2; sum over classes, mean over batch.

    Computed in float32 whatever the inputs are (float64 stays float64), and in log space, so that no logit overflows.
    T^2 keeps the gradient's size independent of T. Dividing by the classes too, as `reduction="mean"` does, would make
    the weight of the term depend on their number.

    Shapes: student, teacher (batch, classes) -> (); unit: nats.
    Source: Hinton, Vinyals & Dean 2015, section 2.1.
    Raises: ValueError: temperature is not positive, or the shapes differ.

    >>> x = torch.tensor([[2.0, 0.0]])
    >>> soft_target_kl(x, x, temperature=4.0).item()
    0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} logits differ in shape")
    precision = torch.promote_types(student.dtype, torch.float32)
    log_q = (student.to(precision) / temperature).log_softmax(-1)
    log_p = (teacher.to(precision) / temperature).log_softmax(-1)
    p = log_p.exp()
    # A class of probability 0 adds nothing, also where its logit is -inf (masked) and the product would be nan; but a
    # nan of the teacher's own must stay one.
    divergence = (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)
    return divergence.mean() * temperature**2


class SoftTarget(Loss):
    """`soft_target_kl` as a term. Raises: ValueError: temperature is not positive."""

    name: ClassVar[str] = "soft_target_kl"

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: the two have different classes."""
        if student.logits.shape != teacher.logits.shape:
            raise InputError(
                f"the student has {student.logits.shape[-1]} classes, the teacher {teacher.logits.shape[-1]}",
                fix="use a teacher of the data's classes, or replace its last layer and fine-tune it",
            )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        return soft_target_kl(student.logits, teacher.logits, temperature=self.temperature)
