"""Knowledge review: a deep stage of the student is fused into the shallower ones, and each meets the teacher's stage.

Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review" (2104.09044).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import several_values, share
from edgekd.distill.losses.pairs import PairLoss, Taps
from edgekd.distill.sources import Signals


class ReviewKD(PairLoss):
    """Sum over stages of `hierarchical_mse` between the fused student feature and the teacher's.

    Give the taps shallow to deep, the pooled vector last where it takes part. Going from deep to shallow, `_Fusion`
    mixes a stage with what the deeper ones handed on, by two learned attention maps. The whole is ramped up over the
    first `warmup` share of the stage.
    Defaults: warm-up 20 of 240 epochs (1 of 100 on ImageNet), middle width min(512, deepest), weight 5 (ResNet-32x4 to
    8x4), 1 (ResNet-34 to 18), 8 (ResNet-50 to MobileNet): mdistiller; users report 30 for MobileNetV2.
    Raises: ValueError: warmup is outside [0, 1].
    """

    name: ClassVar[str] = "review_kd"
    published_weight: ClassVar[float] = 5.0
    view = "own_map"

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, warmup: float = 20 / 240) -> None:
        super().__init__(student_tap, teacher_tap)
        share(warmup=warmup)
        self.warmup = warmup
        self.fusions = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """A fusion per stage."""
        for mine, _ in self.pairs(student, teacher):
            several_values(mine, self.name)
        widths = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self.pairs(student, teacher)]
        middle, deepest = min(512, widths[-1][0]), len(widths) - 1
        self.fusions = nn.ModuleList([_Fusion(a, middle, b, fuse=i < deepest) for i, (a, b) in enumerate(widths)])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: those of the taps -> ()."""
        handed_on: Tensor | None = None
        losses = []
        for (mine, theirs), fusion in reversed(list(zip(self.pairs(student, teacher), self.fusions, strict=True))):
            fused, handed_on = fusion(mine, handed_on, theirs.shape[2:])
            losses.append(hierarchical_mse(fused, theirs))
        ramp = min(1.0, batch.progress / self.warmup) if self.warmup else 1.0
        return ramp * torch.stack(losses).sum()


class _Fusion(nn.Module):
    """Attention-based fusion: (stage, what the deeper handed on, teacher's size) -> (for the teacher, to hand on)."""

    def __init__(self, inputs: int, middle: int, outputs: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        for layer in (*self.reduce, *self.expand):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, stage: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Maps (batch, channels, height, width)."""
        x = self.reduce(stage)
        if self.attention is not None and deeper is not None:
            deeper = functional.interpolate(deeper, x.shape[2:], mode="nearest")
            weight = self.attention(torch.cat([x, deeper], 1))
            x = x * weight[:, :1] + deeper * weight[:, 1:]
        if x.shape[2:] != size:
            x = functional.interpolate(x, size, mode="nearest")
        return self.expand(x), x


def hierarchical_mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error at full size and averaged to 4, 2 and 1 positions a side, with weights 1, 1/2, 1/4, 1/8 over
    their sum; sizes that are not below the full one are left out.

    >>> hierarchical_mse(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)).item()
    1.0
    """
    total, weight, weights = functional.mse_loss(a, b), 1.0, 1.0
    for side in (4, 2, 1):
        if side < a.shape[2]:
            weight /= 2
            weights += weight
            small_a, small_b = (functional.adaptive_avg_pool2d(f, side) for f in (a, b))
            total = total + weight * functional.mse_loss(small_a, small_b)
    return total / weights
