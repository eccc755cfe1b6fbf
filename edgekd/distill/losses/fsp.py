"""Flow of the solution procedure: how two layers of one network vary together (a Gram matrix between them).

Source: Yim et al. 2017, "A Gift from Knowledge Distillation" (CVPR), equations 1 and 2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.features import common_grid
from edgekd.distill.losses.pairs import PairLoss, Taps
from edgekd.distill.sources import Signals
from edgekd.errors import InputError


class FSP(PairLoss):
    """Sum over neighbouring taps (a, b) of mean((G_s - G_t)^2), G = F_a F_b' / (height width), channels by channels.

    Give at least two taps of each network, shallow to deep; widths must agree. The paper runs it as a first stage of
    its own, before the labels are learned. Weight 50: RepDistiller.
    Raises: InputError: fewer than two taps.
    """

    name: ClassVar[str] = "fsp"
    published_weight: ClassVar[float] = 50.0
    view = "own_map"
    equal_channels = True

    def __init__(self, student_tap: Taps, teacher_tap: Taps) -> None:
        super().__init__(student_tap, teacher_tap)
        if len(self.student_taps) < 2:
            raise InputError("fsp got one tap of each network", fix="give at least two, from shallow to deep")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: those of the taps -> ()."""
        mine, theirs = zip(*self.pairs(student, teacher), strict=True)
        flows = [gram(*s) - gram(*t) for s, t in zip(pairwise(mine), pairwise(theirs), strict=True)]
        return torch.stack([difference.square().mean() for difference in flows]).sum()


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the positions of the coarser grid of each product of channels: (batch, channels a, channels b)."""
    a, b = common_grid(a, b)
    return a.flatten(2) @ b.flatten(2).transpose(1, 2) / a[0, 0].numel()
