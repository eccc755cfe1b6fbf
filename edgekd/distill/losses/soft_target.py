"""Soft targets: the student matches the teacher's softened class distribution.

Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import positive
from edgekd.distill.losses.divergence import kl
from edgekd.distill.losses.logits import LogitLoss
from edgekd.distill.sources import Signals


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
    positive(temperature=temperature)
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} logits differ in shape")
    precision = torch.promote_types(student.dtype, torch.float32)
    log_q = (student.to(precision) / temperature).log_softmax(-1)
    log_p = (teacher.to(precision) / temperature).log_softmax(-1)
    return kl(log_p, log_q).mean() * temperature**2


class SoftTarget(LogitLoss):
    """`soft_target_kl` as a term. Raises: ValueError: temperature is not positive.

    Defaults: temperature 4, weight 0.9 beside a cross-entropy of 0.1, as mdistiller on CIFAR-100; on ImageNet 1 and
    0.5 beside 0.5. Function matching (Beyer et al. 2022) is this loss alone at temperature 1, without labels, on
    mixed-up images that teacher and student share.
    """

    name: ClassVar[str] = "soft_target_kl"
    published_weight: ClassVar[float] = 0.9

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__(temperature=temperature)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        return soft_target_kl(student.logits, teacher.logits, temperature=self.temperature)
