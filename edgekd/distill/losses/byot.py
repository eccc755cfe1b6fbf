"""Be your own teacher: heads on middle layers learn from the labels, from the deepest logits and its last feature.

Source: Zhang et al. 2019, "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation" (arXiv 1905.08094); alpha 0.3 and temperature 3 are those of the first
author's code, lambda 0.03 that of the codes derived from it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, positive, share
from edgekd.distill.losses.features import as_vector
from edgekd.distill.losses.pairs import Taps, taps_of
from edgekd.distill.losses.soft_target import soft_target_kl
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError


class BYOT(Loss):
    """Sum over shallow taps of (1 - alpha) CE + alpha T^2 KL(deepest || shallow) + lam |r(f) - f_deepest|^2 (mean).

    student_tap: the shallow layers, then the deepest one. Heads and projectors are linear on pooled features, trained
    with the student and dropped at export. The deepest logits learn from a cross-entropy term of their own; here they
    are a target without gradient. Give the term no source.
    Raises: InputError: fewer than two taps. ValueError: a value out of its range.
    """

    name: ClassVar[str] = "byot"

    def __init__(self, student_tap: Taps, *, alpha: float = 0.3, lam: float = 0.03, temperature: float = 3.0) -> None:
        super().__init__()
        share(alpha=alpha)
        not_negative(lam=lam)
        positive(temperature=temperature)
        self.taps, self.alpha, self.lam, self.temperature = taps_of(student_tap), alpha, lam, temperature
        if len(self.taps) < 2:
            raise InputError("byot got one tap", fix="give one or more shallow layers, then the deepest one")
        self.heads, self.projectors = nn.ModuleList(), nn.ModuleList()

    def needs(self) -> Needs:
        """The student's taps."""
        return Needs(self.taps)

    def build(self, student: Signals, teacher: Signals) -> None:
        """A head and a projector for each shallow tap."""
        *shallow, deepest = (as_vector(student.taps[tap], f"student tap '{tap}'").shape[1] for tap in self.taps)
        self.heads = nn.ModuleList([nn.Linear(width, student.logits.shape[1]) for width in shallow])
        self.projectors = nn.ModuleList([nn.Linear(width, deepest) for width in shallow])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes), any features -> ()."""
        *shallow, deepest = (as_vector(student.taps[tap]) for tap in self.taps)
        truth = batch.labels if batch.targets is None else batch.targets
        losses = []
        for feature, head, projector in zip(shallow, self.heads, self.projectors, strict=True):
            logits = head(feature)
            hard = functional.cross_entropy(logits, truth)
            soft = soft_target_kl(logits, student.logits.detach(), temperature=self.temperature)
            near = functional.mse_loss(projector(feature), deepest.detach())
            losses.append((1 - self.alpha) * hard + self.alpha * soft + self.lam * near)
        return torch.stack(losses).sum()
