"""Decoupled knowledge distillation: the teacher's doubt about the label and its ranking of the rest, weighed apart.

Source: Zhao et al. 2022, "Decoupled Knowledge Distillation" (2203.08679), equations 6 and 7.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, share
from edgekd.distill.losses.divergence import kl, non_target
from edgekd.distill.losses.logits import LogitLoss
from edgekd.distill.sources import Signals


class DKD(LogitLoss):
    """T^2 (alpha KL(b_t || b_s) + beta KL(n_t || n_s)), the mean over the batch.

    b = (p_label, 1 - p_label) and n = softmax over the classes but the label, both of logits / T. The whole is ramped
    up over the first `warmup` share of the stage.
    Defaults: alpha 1, beta 8, T 4, warm-up 20 of 240 epochs: mdistiller on CIFAR-100, where beta is 2 for ResNet-56 to
    20 and 6 for a family's own pairs; on ImageNet T 1, beta 0.5 (ResNet-34 to 18) or 2 (ResNet-50 to MobileNet),
    warm-up 1 of 100 epochs.
    Raises: ValueError: an argument out of its range.
    """

    name: ClassVar[str] = "dkd"

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: float = 20 / 240
    ) -> None:
        super().__init__(temperature=temperature)
        not_negative(alpha=alpha, beta=beta)
        share(warmup=warmup)
        self.alpha, self.beta, self.warmup = alpha, beta, warmup

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        mine, theirs = student.logits / self.temperature, teacher.logits / self.temperature
        target = kl(_target_or_not(theirs, batch.labels), _target_or_not(mine, batch.labels))
        rest = kl(*(non_target(logits, batch.labels).log_softmax(1) for logits in (theirs, mine)))
        ramp = min(1.0, batch.progress / self.warmup) if self.warmup else 1.0
        return ramp * self.temperature**2 * (self.alpha * target + self.beta * rest).mean()


def _target_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """log (p_label, 1 - p_label): (batch, classes) -> (batch, 2); with one class (batch, 1)."""
    total = logits.logsumexp(1, keepdim=True)
    label = logits.gather(1, labels.unsqueeze(1)) - total
    if logits.shape[1] == 1:
        return label
    return torch.cat([label, non_target(logits, labels).logsumexp(1, keepdim=True) - total], 1)
