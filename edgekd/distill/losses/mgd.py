"""Masked generative distillation: from a student's feature with holes, a generator makes the teacher's whole one.

Source: Yang et al. 2022, "Masked Generative Distillation" (2205.01529).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgekd.distill.losses.checks import share
from edgekd.distill.losses.connectors import generator
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals


class MGD(ComparedPairs):
    """Sum over pairs of ||G(mask * A(F_s)) - F_t||^2, summed over channels and positions, the mean over the batch.

    A is a 1x1 convolution where the widths differ, G two 3x3 convolutions. The mask drops whole channels (for
    classification) or positions with probability `masked`, drawn from the step's generator.
    Defaults: channels, 0.15, weight 7e-5: the authors' code for classification. For dense tasks they take positions,
    0.65 and 2e-5.
    Raises: ValueError: masked is outside [0, 1], or mask is neither.
    """

    name: ClassVar[str] = "mgd"
    published_weight: ClassVar[float] = 7e-5

    def __init__(
        self,
        student_tap: Taps,
        teacher_tap: Taps,
        *,
        masked: float = 0.15,
        mask: Literal["channels", "positions"] = "channels",
    ) -> None:
        super().__init__(student_tap, teacher_tap)
        share(masked=masked)
        if mask not in ("channels", "positions"):
            raise ValueError(f"mask must be channels or positions, got '{mask}'")
        self.masked, self.mask = masked, mask
        self.aligners, self.generators = nn.ModuleList(), nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """An aligner and a generator per pair."""
        for mine, theirs in self.pairs(student, teacher):
            a, b = mine.shape[1], theirs.shape[1]
            self.aligners.append(nn.Identity() if a == b else nn.Conv2d(a, b, 1))
            self.generators.append(generator(b))

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        aligned: Tensor = self.aligners[pair](mine)
        batch, channels, height, width = aligned.shape
        shape = (batch, channels, 1, 1) if self.mask == "channels" else (batch, 1, height, width)
        kept = torch.rand(shape, device=aligned.device, dtype=aligned.dtype) >= self.masked
        error: Tensor = self.generators[pair](aligned * kept) - theirs
        return error.square().sum() / batch
