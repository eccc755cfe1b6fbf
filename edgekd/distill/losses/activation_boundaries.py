"""Activation boundaries: a student's neuron is on where the teacher's is, however strongly.

Source: Heo et al. 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons"
(1811.03233).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from edgekd.distill.losses.checks import positive, several_values
from edgekd.distill.losses.connectors import convolution_and_norm
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals


class ActivationBoundaries(ComparedPairs):
    """Sum over pairs of scale / 2^(pairs - 1 - i) times ((s + m)^2 where t <= 0 and s > -m, plus (s - m)^2 where t > 0
    and s <= m).

    s is the student's feature through a 1x1 convolution and batch norm, t the teacher's before its ReLU, m the margin;
    the sum is over channels and positions, the mean over the batch. The paper runs it as a first stage of its own.
    Defaults: margin 1, scale 0.003, weight 1: RepDistiller.
    Raises: ValueError: margin or scale is not positive.
    """

    name: ClassVar[str] = "activation_boundaries"

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, margin: float = 1.0, scale: float = 0.003) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(margin=margin, scale=scale)
        self.margin, self.scale = margin, scale
        self.connectors = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """A connector per pair."""
        shapes = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self.pairs(student, teacher)]
        for mine, _ in self.pairs(student, teacher):
            several_values(mine, self.name)
        self.connectors = nn.ModuleList([convolution_and_norm(*shape) for shape in shapes])

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        s = self.connectors[pair](mine)
        # One hinge for both: where the teacher is on, s must pass the margin, where it is off, -s must.
        lacking: Tensor = (self.margin - s * (theirs > 0).to(s.dtype).mul(2).sub(1)).relu()
        depth_weight = self.scale * 0.5 ** (len(self.student_taps) - 1 - pair)
        return depth_weight * lacking.square().sum() / len(s)
