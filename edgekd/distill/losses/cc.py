"""Correlation congruence: the correlation between the images of a batch, by a Gaussian kernel's Taylor series.

Source: Peng et al. 2019, "Correlation Congruence for Knowledge Distillation" (1904.01802).
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.losses.checks import not_negative, positive
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals


class CorrelationCongruence(ComparedPairs):
    """Sum over pairs of mean((K_s - K_t)^2), K the sum over p <= order of exp(-2 gamma) (2 gamma)^p (f_i . f_j)^p / p!.

    f is pooled to a vector of length 1.
    embed: width of a linear embedding of both sides first, trained with the student (RepDistiller: 128); None: none, as
    the kernels of both are batch x batch anyway, and an embedding of the teacher could learn to say nothing.
    Defaults: gamma 0.4, order 2 (public reimplementations of the paper), weight 0.02 (RepDistiller).
    Raises: ValueError: an argument out of its range.
    """

    name: ClassVar[str] = "correlation_congruence"
    published_weight: ClassVar[float] = 0.02
    view = "vector"
    between_images = True

    def __init__(
        self, student_tap: Taps, teacher_tap: Taps, *, gamma: float = 0.4, order: int = 2, embed: int | None = None
    ) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(gamma=gamma, embed=embed or 1)
        not_negative(order=order)
        self.gamma, self.order, self.embed = gamma, order, embed
        self.embeddings = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """An embedding of each side per pair, where asked for."""
        for pair in self.pairs(student, teacher):
            linears = [nn.Linear(f.shape[1], self.embed) if self.embed else nn.Identity() for f in pair]
            self.embeddings.append(nn.ModuleList(linears))

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels) -> ()."""
        own, foreign = self.embeddings[pair].children()
        a, b = self.kernel(own(mine)), self.kernel(foreign(theirs))
        return (a - b).square().mean()

    def kernel(self, f: Tensor) -> Tensor:
        """(batch, channels) -> (batch, batch)."""
        f = functional.normalize(f)
        cosine, scale = f @ f.T, 2 * self.gamma
        terms = [math.exp(-scale) * scale**p / math.factorial(p) * cosine.pow(p) for p in range(self.order + 1)]
        return sum(terms[1:], terms[0])
