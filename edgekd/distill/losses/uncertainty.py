"""Another loss under a weight that is learned: exp(-s) L + s, s the log of the term's uncertainty.

Source: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
Semantics" (1705.07115), in the form with s = log sigma^2 that its section 3.2 recommends for training.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import positive
from edgekd.distill.losses.wrapping import Wrapping
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss


class UncertaintyWeighted(Wrapping):
    """exp(-s) L + s with s learned. At its optimum exp(-s) = 1 / L: every term so weighted pulls alike.

    inner: the loss L, in a recipe as {method = NAME, ...}; it must be positive. start: exp(-s) at the beginning.
    Give each term of the stage its own. Raises: ValueError: start is not positive.
    """

    name: ClassVar[str] = "uncertainty_weighted"

    def __init__(self, inner: Loss, *, start: float = 1.0) -> None:
        super().__init__(inner)
        positive(start=start)
        self.log_variance = nn.Parameter(torch.tensor(-math.log(start)))

    @property
    def weight(self) -> float:
        """exp(-s) as it is now."""
        return float(torch.exp(-self.log_variance))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: the inner loss's -> ()."""
        value: Tensor = self.inner(student, teacher, batch)
        return torch.exp(-self.log_variance) * value + self.log_variance
