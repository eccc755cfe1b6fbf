"""Reverse and symmetric Kullback-Leibler, and the generalised Jensen-Shannon divergence between them.

Sources: Gu et al. 2024, "MiniLLM" (2306.08543), for reverse: the student covers only modes it can hold;
Agarwal et al. 2024, "On-Policy Distillation of Language Models" (2306.13649), for the generalised JSD.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import share
from edgekd.distill.losses.divergence import kl
from edgekd.distill.losses.logits import LogitLoss
from edgekd.distill.sources import Signals


class ReverseKL(LogitLoss):
    """T^2 KL(student || teacher), the mean over the batch. Default T 1 (MiniLLM's code)."""

    name: ClassVar[str] = "reverse_kl"

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        log_q, log_p = ((s.logits / self.temperature).log_softmax(1) for s in (student, teacher))
        return kl(log_q, log_p).mean() * self.temperature**2


class SymmetricKL(LogitLoss):
    """T^2 (KL(teacher || student) + KL(student || teacher)) / 2, the mean over the batch. Default T 1."""

    name: ClassVar[str] = "symmetric_kl"

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        log_q, log_p = ((s.logits / self.temperature).log_softmax(1) for s in (student, teacher))
        return (kl(log_q, log_p) + kl(log_p, log_q)).mean() * self.temperature**2 / 2


class JensenShannon(LogitLoss):
    """T^2 (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q, teacher p and student q.

    As in GKD, beta 0 and 1 stand for the limits of the divergence over beta (1 - beta): KL(p || q) and KL(q || p).
    Bounded by ln 2 where the KL is not, so one image that the teacher gets wildly wrong cannot rule the batch.
    Defaults: beta 0.5, T 1: GKD in trl.
    Raises: ValueError: beta is outside [0, 1].
    """

    name: ClassVar[str] = "jensen_shannon"

    def __init__(self, *, beta: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)
        share(beta=beta)
        self.beta = beta

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        log_q, log_p = ((s.logits / self.temperature).log_softmax(1) for s in (student, teacher))
        return self._divergence(log_p, log_q).mean() * self.temperature**2

    def _divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.beta in (0, 1):
            return kl(log_p, log_q) if self.beta == 0 else kl(log_q, log_p)
        log_m = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
        return self.beta * kl(log_p, log_m) + (1 - self.beta) * kl(log_q, log_m)
