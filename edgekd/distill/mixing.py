"""Mixup and CutMix of a whole batch; teacher and student see the same mixed images.

Sources: Zhang et al. 2018, "mixup" (arXiv 1710.09412); Yun et al. 2019, "CutMix" (arXiv 1905.04899); shared by both
models as in Beyer et al. 2022, "A good teacher is patient and consistent" (arXiv 2106.05237).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed. partner: int64 (batch,), whom each image is mixed with; share: of the image itself, at
    least a half, so that `labels` and `index` stay those of the greater part. window: top, bottom, left, right of the
    pasted rectangle (CutMix), None: blended (mixup)."""

    partner: Tensor
    share: float
    window: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor, partners: Tensor) -> Tensor:
        """Both (batch, channels, height, width), normalised -> mixed."""
        if self.window is None:
            return partners.lerp(images, self.share)
        top, bottom, left, right = self.window
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed

    def targets(self, labels: Tensor, partners: Tensor, classes: int) -> Tensor:
        """Labels (batch,) of both -> target distributions (batch, classes), float32."""
        own, other = (functional.one_hot(x, classes).float() for x in (labels, partners))
        return other.lerp(own, self.share)


def draw_mixing(batch: int, size: int, *, seed: int, mixup: float, cutmix: float) -> Mixing:
    """Draw how to mix a batch of square images. mixup, cutmix: alpha of Beta(alpha, alpha), 0: off; both: one of them.

    >>> mixing = draw_mixing(4, 8, seed=1, mixup=0.0, cutmix=1.0)
    >>> top, bottom, left, right = mixing.window
    >>> mixing.share == 1 - (bottom - top) * (right - left) / 64 >= 0.5
    True
    """
    generator = np.random.default_rng(seed)
    partner = torch.from_numpy(generator.permutation(batch))
    pastes = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    alpha = cutmix if pastes else mixup
    drawn = float(generator.beta(alpha, alpha))
    share = max(drawn, 1 - drawn)
    if not pastes:
        return Mixing(partner, share)
    side = int(size * (1 - share) ** 0.5)
    top, left = (int(generator.integers(0, size - side + 1)) for _ in range(2))
    return Mixing(partner, 1 - side * side / size**2, (top, top + side, left, left + side))
