"""ViTKD: the first layers of a transformer are mimicked, a deep one is generated from a student's tokens with holes.

Source: Yang et al. 2024, "ViTKD: Feature-based Knowledge Distillation for Vision Transformers" (2209.02432).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative
from edgekd.distill.losses.connectors import generator
from edgekd.distill.losses.pairs import PairLoss, Taps
from edgekd.distill.sources import Signals
from edgekd.errors import InputError


class ViTKD(PairLoss):
    """alpha ||A(F_s) - F_t||^2 of the shallow taps + (beta / masked) ||(G(A'(F_s) with holes) - F_t) * holes||^2 of the
    deep one, summed over tokens and channels, the mean over the batch.

    Give the taps shallow to deep; the last is the deep one. A is linear per token where the widths differ, G two 3x3
    convolutions on the grid of tokens, a hole a learned token; `masked` is their share, drawn from the step's
    generator. Class tokens are left out. A CNN's map may stand for tokens on either side.
    Defaults: the first two layers and the last, alpha 3e-5, beta 3e-6, masked 0.5, weight 1: the authors' code, mmcls.
    Raises: ValueError: masked is outside (0, 1), or a weight is negative. InputError: fewer than two taps.
    """

    name: ClassVar[str] = "vitkd"

    def __init__(
        self, student_tap: Taps, teacher_tap: Taps, *, alpha: float = 3e-5, beta: float = 3e-6, masked: float = 0.5
    ) -> None:
        super().__init__(student_tap, teacher_tap)
        not_negative(alpha=alpha, beta=beta)
        if not 0 < masked < 1:
            raise ValueError(f"masked must be in (0, 1), got {masked}")
        if len(self.student_taps) < 2:
            raise InputError("vitkd got one tap of each network", fix="give shallow layers and a deep one")
        self.alpha, self.beta, self.masked = alpha, beta, masked
        self.aligners = nn.ModuleList()
        self.generator: nn.Module = nn.Identity()
        self.hole = nn.Parameter(torch.zeros(()))

    def build(self, student: Signals, teacher: Signals) -> None:
        """Aligners, and the generator of the teacher's width."""
        widths = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self.pairs(student, teacher)]
        self.aligners = nn.ModuleList([nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in widths])
        self.generator = generator(widths[-1][1])
        self.hole = nn.Parameter(torch.zeros(1, widths[-1][1], 1, 1))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: tokens (batch, tokens, channels) or maps -> ()."""
        *shallow, (mine, theirs) = [
            (align(a), b) for align, (a, b) in zip(self.aligners, self.pairs(student, teacher), strict=True)
        ]
        mimicry = torch.stack([(a - b).square().sum() for a, b in shallow]).sum()
        holes = self._holes(mine)
        made = self.generator(torch.where(holes, self.hole, mine))
        generation: Tensor = ((made - theirs) * holes).square().sum()
        return (self.alpha * mimicry + self.beta / self.masked * generation) / len(mine)

    def _holes(self, map_: Tensor) -> Tensor:
        """True at exactly the masked share of each image's positions: bool (batch, 1, height, width)."""
        batch, _, height, width = map_.shape
        order = torch.rand(batch, height * width, device=map_.device).argsort(1).argsort(1)
        kept = math.floor(height * width * (1 - self.masked))
        return (order >= kept).view(batch, 1, height, width)
