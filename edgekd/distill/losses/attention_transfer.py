"""Attention transfer: where a layer is active matters, not in which channel.

Source: Zagoruyko & Komodakis 2017, "Paying More Attention to Attention" (1612.03928), section 3.1, equation 2.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.losses.checks import positive
from edgekd.distill.losses.pairs import ComparedPairs, Taps


class AttentionTransfer(ComparedPairs):
    """Sum over pairs of mean((N(q_s) - N(q_t))^2), q = mean over channels of |F|^power by position, N to length 1.

    No projector: widths may differ, grids are averaged to the coarser. The mean over positions is the authors' code;
    their paper writes a norm (see torchdistill's note).
    Defaults: power 2, weight 1000 over the outputs of all stages: mdistiller.
    Raises: ValueError: power is not positive.
    """

    name: ClassVar[str] = "attention_transfer"
    published_weight: ClassVar[float] = 1000.0

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, power: float = 2.0) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(power=power)
        self.power = power

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        a, b = (functional.normalize(f.abs().pow(self.power).mean(1).flatten(1)) for f in (mine, theirs))
        return (a - b).square().mean()
