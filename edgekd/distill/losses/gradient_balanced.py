"""GradNorm: weights between losses, learned so that each pulls on the student with a like force.

Source: Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks"
(1711.02257), equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative
from edgekd.distill.losses.processes import gathered
from edgekd.distill.sources import Signals
from edgekd.distill.taps import resolve
from edgekd.distill.terms import Context, Loss, Needs
from edgekd.errors import InputError


class GradientBalanced(Loss):
    """sum_i w_i L_i, and w learns from sum_i |G_i - mean(G) r_i^alpha| / mean(G).

    G_i = w_i |dL_i / dW|, W the last weight at or before the end of `student_tap`, which all losses must reach; r_i =
    (L_i / L_i at the first step) over its mean: a loss that falls slowly is given more force. w = n softmax(v), so that
    the weights stay positive and sum to n (the paper divides by their sum after each step). The value is that of the
    weighted sum; its gradient to the student does not see how w learns.
    terms: the losses, in a recipe as [{method = NAME, ...}, ...]; all read the term's source. alpha 1.5: the paper.
    The losses must be positive. Costs a backward pass of each down to W.
    Raises: InputError: fewer than two losses. ValueError: alpha < 0.
    """

    name: ClassVar[str] = "gradient_balanced"
    first: Tensor

    def __init__(self, terms: Sequence[Loss], *, student_tap: str, alpha: float = 1.5) -> None:
        super().__init__()
        not_negative(alpha=alpha)
        if len(terms) < 2:
            raise InputError(f"gradient_balanced got {len(terms)} losses", fix="give two or more to balance")
        self.inner, self.student_tap, self.alpha = nn.ModuleList(terms), student_tap, alpha
        self.scores = nn.Parameter(torch.zeros(len(terms)))
        self.register_buffer("first", torch.zeros(len(terms)))
        self._shared: list[Tensor] = []  # in a list, so that the student's weight is not one of this loss's

    @property
    def losses(self) -> list[Loss]:
        """What is balanced, in order."""
        return [loss for loss in self.inner if isinstance(loss, Loss)]

    def weights(self) -> Tensor:
        """w: (losses,), positive, with sum n."""
        return len(self.scores) * self.scores.softmax(0)

    def needs(self) -> Needs:
        """All that the losses need."""
        asked = [loss.needs() for loss in self.losses]
        return Needs(*(tuple(dict.fromkeys(t for needs in asked for t in needs[side])) for side in (0, 1)))

    def prepare(self, context: Context) -> None:
        """Raises: InputError: no weight to balance at is found."""
        if context.student is None:
            raise InputError("gradient_balanced needs a student whose layers can be seen")
        layer = resolve(context.student, self.student_tap)
        weights = [parameter for parameter in layer.parameters() if parameter.ndim > 1]
        if not weights:
            raise InputError(f"gradient_balanced: '{self.student_tap}' has no weights", fix="name a block that has")
        self._shared = [weights[-1]]
        for loss in self.losses:
            loss.prepare(context)

    def build(self, student: Signals, teacher: Signals) -> None:
        """Handed on."""
        for loss in self.losses:
            loss.build(student, teacher)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: those of the losses -> (). Raises: InputError: a loss does not depend on the shared weight."""
        parts: list[Tensor] = [loss(student, teacher, batch) for loss in self.losses]
        values = torch.stack(parts)
        weights = self.weights()
        total = (weights.detach() * values).sum()
        if not torch.is_grad_enabled():
            return total
        with torch.no_grad():
            everywhere = gathered(values.unsqueeze(0)).mean(0).clamp_min(1e-12)
            self.first.copy_(torch.where(self.first > 0, self.first, everywhere))
            rate = everywhere / self.first
            pull = (rate / rate.mean()) ** self.alpha
        force = weights * self._gradient_norms(parts)
        mean = force.mean().detach().clamp_min(1e-12)
        unlike = ((force - (mean * pull).detach()).abs() / mean).sum()
        return total + unlike - unlike.detach()

    def _gradient_norms(self, values: Sequence[Tensor]) -> Tensor:
        """|dL_i / dW|: (losses,), without gradient."""
        norms = []
        for loss, value in zip(self.losses, values, strict=True):
            slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
                value, self._shared, retain_graph=True, allow_unused=True
            )
            slope = slopes[0]
            if slope is None:
                what = f"gradient_balanced: {loss.name} does not depend on the weights of '{self.student_tap}'"
                raise InputError(what, fix="name a layer that lies before all that the losses read")
            norms.append(gathered(slope.unsqueeze(0)).mean(0).norm())
        return torch.stack(norms)
