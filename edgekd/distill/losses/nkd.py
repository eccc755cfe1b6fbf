"""Normalised knowledge distillation: the label weighed by the teacher's trust in it, and the rest as a distribution.

Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
Normalized Loss and Customized Soft Labels" (2303.13005).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative
from edgekd.distill.losses.divergence import entropy, kl, non_target
from edgekd.distill.losses.logits import LogitLoss
from edgekd.distill.sources import Signals


class NKD(LogitLoss):
    """-t_y log s_y - gamma T^2 sum over the classes i but y of n_t(i) log n_s(i), the mean over the batch.

    t and s are probabilities at temperature 1, n the softmax of logits / T over the classes but the label y.
    Cross-entropies, not 0 for equal logits; the first is of one class alone, so that its gradient there is
    t_y (s - onehot(y)), not 0.
    Defaults: gamma 1.5, T 1, weight 1: the authors' code, mmcls.
    Raises: ValueError: gamma is negative or the temperature not positive.
    """

    name: ClassVar[str] = "nkd"

    def __init__(self, *, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)
        not_negative(gamma=gamma)
        self.gamma = gamma

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        label = batch.labels.unsqueeze(1)
        mine, theirs = (s.logits.log_softmax(1).gather(1, label).squeeze(1) for s in (student, teacher))
        log_n, log_m = (
            (non_target(s.logits, batch.labels) / self.temperature).log_softmax(1) for s in (teacher, student)
        )
        rest = kl(log_n, log_m) + entropy(log_n)  # the cross-entropy of the two
        return (self.gamma * self.temperature**2 * rest - theirs.exp() * mine).mean()
