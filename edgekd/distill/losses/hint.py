"""Hints: middle layers of the student, each through a linear projector, match those of the teacher.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, with a 1x1 convolution as regressor.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.losses.features import align
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals

__all__ = ["Hint", "align"]


class Hint(ComparedPairs):
    """Sum over pairs of the mean squared error between the projected student feature and the teacher's, after `align`.

    Works for feature maps, vectors and tokens. Averaging down commutes with the projector, so it comes first: a linear
    layer per position is the 1x1 convolution of the paper. Weight 100 on one middle layer is mdistiller's.
    """

    name: ClassVar[str] = "hint"
    published_weight: ClassVar[float] = 100.0
    view = "raw"

    def __init__(self, student_tap: Taps, teacher_tap: Taps) -> None:
        super().__init__(student_tap, teacher_tap)
        self.projectors = nn.ModuleList()

    @property
    def projector(self) -> nn.Module:
        """The first pair's projector."""
        return self.projectors[0]

    def build(self, student: Signals, teacher: Signals) -> None:
        """A projector per pair, from the student's channels to the teacher's."""
        aligned = [align(mine, theirs) for mine, theirs in self.pairs(student, teacher)]
        self.projectors = nn.ModuleList([nn.Linear(a.shape[-1], b.shape[-1], device=a.device) for a, b in aligned])

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: any that `align` takes -> ()."""
        mine, theirs = align(mine, theirs)
        loss: Tensor = functional.mse_loss(self.projectors[pair](mine), theirs)
        return loss
