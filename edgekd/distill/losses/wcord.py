"""Wasserstein contrastive representation distillation: a dual (global) and a primal (local) Wasserstein distance.

Source: Chen et al. 2021, "Wasserstein Contrastive Representation Distillation" (2012.08674). No
reference code is public; the formulas are the paper's as remembered, and every default here is [mem].
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from edgekd.distill.losses.checks import positive, several_images
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.losses.processes import gathered, world
from edgekd.distill.sources import Signals


class WCoRDGlobal(ComparedPairs):
    """Mean critic of unlike pairs - mean critic of like pairs: minus the dual objective of the Wasserstein-1 distance
    between joint and independent features.

    The critic is g(t, s) = (A N(t)) . (B N(s)), N to length 1 and A, B of spectral norm 1, so it is 1-Lipschitz in each
    argument and the loss lies in [-2, 2]. Unlike pairs are those of the batch, over all processes.
    Defaults [mem]: dimensions 128, weight 0.8.
    Raises: ValueError: dimensions is not positive.
    """

    name: ClassVar[str] = "wcord_global"
    published_weight: ClassVar[float] = 0.8
    view = "vector"

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, dimensions: int = 128) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(dimensions=dimensions)
        self.dimensions = dimensions
        self.critics = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """A critic per pair."""
        several_images(student, self.name)
        for pair in self.pairs(student, teacher):
            halves = [spectral_norm(nn.Linear(f.shape[1], self.dimensions, bias=False)) for f in pair]
            self.critics.append(nn.ModuleList(halves))

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels) -> ()."""
        own, foreign = self.critics[pair].children()
        s, t = own(functional.normalize(mine)), foreign(functional.normalize(gathered(theirs)))
        rank, count = world()
        critic: Tensor = s @ t.T
        like = critic.gather(1, (torch.arange(len(s), device=s.device) * count + rank).unsqueeze(1)).sum()
        unlike = critic.sum() - like
        return unlike / max(1, critic.numel() - len(s)) - like / len(s)


class WCoRDLocal(ComparedPairs):
    """<plan, cost>: the cheapest way to carry a batch of student features to the teacher's, entropic (Sinkhorn).

    cost = 1 - cosine of (linear embedding of f_s, f_t); the plan has uniform margins and carries no gradient, which at
    convergence is the gradient of the entropic distance (envelope theorem).
    Defaults [mem]: epsilon 0.05, 20 iterations, weight 0.05.
    Raises: ValueError: epsilon or iterations is not positive.
    """

    name: ClassVar[str] = "wcord_local"
    published_weight: ClassVar[float] = 0.05
    view = "vector"
    between_images = True

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, epsilon: float = 0.05, iterations: int = 20) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(epsilon=epsilon, iterations=iterations)
        self.epsilon, self.iterations = epsilon, iterations
        self.projectors = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """A projector per pair."""
        widths = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self.pairs(student, teacher)]
        self.projectors = nn.ModuleList([nn.Linear(a, b) for a, b in widths])

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels) -> ()."""
        cost = 1 - functional.normalize(self.projectors[pair](mine)) @ functional.normalize(theirs).T
        return (sinkhorn_plan(cost.detach(), epsilon=self.epsilon, iterations=self.iterations) * cost).sum()


def sinkhorn_plan(cost: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """The entropic transport plan of uniform margins, in log space so that a small epsilon underflows nothing.

    Shapes: (n, m) -> (n, m), sums to 1. Source: Cuturi 2013; Peyre & Cuturi 2019, section 4.4.

    >>> sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1, iterations=5).round(decimals=4)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    kernel = -cost / epsilon
    rows, columns = (-math.log(size) for size in cost.shape)
    v = kernel.new_zeros(cost.shape[1])
    for _ in range(iterations):
        u = rows - (kernel + v).logsumexp(1)
        v = columns - (kernel + u.unsqueeze(1)).logsumexp(0)
    return (kernel + u.unsqueeze(1) + v).exp()
