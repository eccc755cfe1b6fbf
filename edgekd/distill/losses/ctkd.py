"""Curriculum temperature: a learned temperature that makes the student's task harder as training goes on.

Source: Li et al. 2023, "Curriculum Temperature for Knowledge Distillation" (2211.16231).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, positive, same_classes, share
from edgekd.distill.losses.divergence import kl
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss


def scaled_gradient(value: Tensor, factor: float) -> Tensor:
    """`value`, whose gradient is multiplied by `factor`; a negative one is a gradient reversal layer.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> scaled_gradient(x, -2.0).backward(); x.grad.item()
    -2.0
    """
    return value.detach() + factor * (value - value.detach())


class CTKD(Loss):
    """T^2 KL(teacher || student) at T = lowest + span * sigmoid(w), where w is learned to raise the loss.

    The gradient to w is reversed and grows from 0 to its full size as (1 - cos) / 2 over the `ramp` share of the stage.
    Defaults: lowest 1, span 20, w starts at 1 (so T starts at 15.6), ramp 10 of 240 epochs, weight 0.9 beside a
    cross-entropy of 0.1: the authors' scripts (the global temperature, not the instance-wise one). They step the ramp
    by epoch; here it is smooth.
    Raises: ValueError: an argument out of its range.
    """

    name: ClassVar[str] = "ctkd"
    may_rise: ClassVar[bool] = True
    published_weight: ClassVar[float] = 0.9

    def __init__(self, *, lowest: float = 1.0, span: float = 20.0, ramp: float = 10 / 240) -> None:
        super().__init__()
        positive(lowest=lowest)
        not_negative(span=span)
        share(ramp=ramp)
        self.lowest, self.span, self.ramp = lowest, span, ramp
        self.w = nn.Parameter(torch.ones(()))

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: the two have different classes."""
        same_classes(student, teacher)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        done = min(1.0, batch.progress / self.ramp) if self.ramp else 1.0
        w = scaled_gradient(self.w, -(1 - math.cos(math.pi * done)) / 2)
        temperature = self.lowest + self.span * w.sigmoid()
        log_p, log_q = ((s.logits / temperature).log_softmax(1) for s in (teacher, student))
        return kl(log_p, log_q).mean() * temperature**2
