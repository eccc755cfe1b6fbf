"""Variational information distillation: the student predicts the teacher's feature, with a learned error per channel.

Source: Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer" (1904.05835).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.losses.checks import positive
from edgekd.distill.losses.connectors import three_convolutions
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals


class VID(ComparedPairs):
    """Sum over pairs of mean(((mu(F_s) - F_t)^2 / v + log v) / 2), v = softplus(a) + 1e-5 for each channel.

    mu is three 1x1 convolutions. It can be negative; it is a log-likelihood without its constant.
    Defaults: v starts at 5, weight 1 over the outputs of all stages: mdistiller.
    Raises: ValueError: initial_variance is not positive.
    """

    name: ClassVar[str] = "vid"

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, initial_variance: float = 5.0) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(initial_variance=initial_variance)
        self.initial_variance = initial_variance
        self.regressors, self.scales = nn.ModuleList(), nn.ParameterList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """A regressor and a variance per pair."""
        start = math.log(math.expm1(self.initial_variance))
        for mine, theirs in self.pairs(student, teacher):
            self.regressors.append(three_convolutions(mine.shape[1], theirs.shape[1]))
            self.scales.append(nn.Parameter(torch.full((1, theirs.shape[1], 1, 1), start)))

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        variance = functional.softplus(self.scales[pair]) + 1e-5
        error: Tensor = (self.regressors[pair](mine) - theirs).square()
        return (error / variance + variance.log()).mean() / 2
