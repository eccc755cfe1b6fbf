"""Relational knowledge distillation: the distances and angles between the images of a batch.

Source: Park et al. 2019, "Relational Knowledge Distillation" (1904.05068).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgekd.distill.losses.checks import positive
from edgekd.distill.losses.pairs import ComparedPairs, Taps

_WHOLE = 256  # a batch up to this is compared at once: 67 MB of angles


class RKDDistance(ComparedPairs):
    """SmoothL1 between distances |f_i - f_j|, each over their mean where it is above 0, mean over all batch^2 pairs.

    Features are pooled to vectors; widths may differ. Weight 25: RepDistiller and mdistiller.
    """

    name: ClassVar[str] = "rkd_distance"
    published_weight: ClassVar[float] = 25.0
    view = "vector"
    between_images = True

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels) -> ()."""
        loss: Tensor = functional.smooth_l1_loss(_distances(mine), _distances(theirs))
        return loss


def _distances(f: Tensor) -> Tensor:
    # By matrix products (the default) two near vectors lose all their digits, and equal ones have no gradient.
    distances = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.clamp_min(1e-12)


class RKDAngle(ComparedPairs):
    """SmoothL1 between cosines of the angle at i between j and k, mean over all batch^3 triples.

    The cosine is 0 where two of the three coincide. Above 256 images it works through `chunk` anchors at a time and
    forgets what the gradient can recompute, so memory is chunk x batch x (channels + batch), not batch^2 x channels.
    Weight 50: RepDistiller and mdistiller.
    Raises: ValueError: chunk is not positive.
    """

    name: ClassVar[str] = "rkd_angle"
    published_weight: ClassVar[float] = 50.0
    view = "vector"
    between_images = True

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, chunk: int = 32) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(chunk=chunk)
        self.chunk = chunk

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels) -> ()."""
        count = len(mine)
        if count <= _WHOLE:
            return _angle_error(mine, theirs, 0, count) / count**3
        errors = [
            checkpoint(_angle_error, mine, theirs, start, start + self.chunk, use_reentrant=False)
            for start in range(0, count, self.chunk)
        ]
        return torch.stack(errors).sum() / count**3


def _angle_error(mine: Tensor, theirs: Tensor, start: int, stop: int) -> Tensor:
    """The sum over anchors start to stop."""
    with torch.no_grad():
        target = _cosines(theirs, start, stop)
    loss: Tensor = functional.smooth_l1_loss(_cosines(mine, start, stop), target, reduction="sum")
    return loss


def _cosines(f: Tensor, start: int, stop: int) -> Tensor:
    """(anchors, batch, batch)."""
    difference = f.unsqueeze(0) - f[start:stop].unsqueeze(1)
    squares = difference.square().sum(2, keepdim=True)
    apart = squares > 0
    # rsqrt only where it is finite: the difference of an image with itself must have gradient 0, not nan.
    unit = difference * squares.masked_fill(~apart, 1.0).rsqrt() * apart
    return unit @ unit.transpose(1, 2)
