"""Inter-channel correlation: which channels of a layer speak together.

Source: Liu et al. 2021, "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation" (ICCV).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.losses.checks import several_values
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals


class ICKD(ComparedPairs):
    """Sum over pairs of ||N(F_s F_s') - N(F_t F_t')||^2 / channels, mean over the batch; F (channels, positions), N to
    rows of length 1.

    The student goes through a 1x1 convolution and batch norm first, as in the reference code; sizes may differ.
    Weight 2.5: the authors' script for CIFAR-100. torchdistill could not reproduce the published
    ImageNet figure (68.3 against 72.2).
    """

    name: ClassVar[str] = "ickd"
    published_weight: ClassVar[float] = 2.5
    view = "own_map"

    def __init__(self, student_tap: Taps, teacher_tap: Taps) -> None:
        super().__init__(student_tap, teacher_tap)
        self.embeddings = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """An embedding per pair."""
        for mine, theirs in self.pairs(student, teacher):
            several_values(mine, self.name)
            convolution = nn.Conv2d(mine.shape[1], theirs.shape[1], 1, bias=False)
            self.embeddings.append(nn.Sequential(convolution, nn.BatchNorm2d(theirs.shape[1])))

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        features = (self.embeddings[pair](mine).flatten(2), theirs.flatten(2))
        a, b = (functional.normalize(f @ f.transpose(1, 2), dim=2) for f in features)
        return (a - b).square().sum() / a.shape[1] / len(a)
