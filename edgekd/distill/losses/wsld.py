"""Weighted soft labels: an image counts the more, the worse the student does on it beside the teacher.

Source: Zhou et al. 2021, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective"
(2102.00650).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.divergence import entropy, kl
from edgekd.distill.losses.logits import LogitLoss
from edgekd.distill.sources import Signals


class WSLD(LogitLoss):
    """T^2 mean(w H(p_t, p_s)), w = 1 - exp(-CE_s / (CE_t + 1e-7)), without gradient through w.

    H is the cross-entropy of the softened distributions, CE that with the label at temperature 1.
    Defaults: T 4 and weight 2.25 (CIFAR-100), T 2 and weight 2.5 (ImageNet): mmcls and mmrazor.
    """

    name: ClassVar[str] = "wsld"
    published_weight: ClassVar[float] = 2.25

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__(temperature=temperature)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        worse, better = (
            functional.cross_entropy(s.logits.detach(), batch.labels, reduction="none") for s in (student, teacher)
        )
        w = 1 - (-worse / (better + 1e-7)).exp()
        log_p, log_q = ((s.logits / self.temperature).log_softmax(1) for s in (teacher, student))
        return (w * (kl(log_p, log_q) + entropy(log_p))).mean() * self.temperature**2
