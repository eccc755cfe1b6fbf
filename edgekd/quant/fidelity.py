"""How much of its outputs an int8 model keeps, image by image: a pooled ratio sees the most extreme images alone."""

from __future__ import annotations

import torch
from torch import Tensor

# Of an image whose outputs are the same; the negative where nothing was to be kept.
MOST_DB = 200.0


def image_db(wanted: Tensor, got: Tensor) -> Tensor:
    """Signal to noise ratio of each image in dB: (images, ...) twice to (images,), float64; one number is one image.

    >>> image_db(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor([[3.0, 4.5], [0.3, 0.4]]))
    tensor([ 20., 200.], dtype=torch.float64)
    """
    images = len(wanted) if wanted.ndim else 1
    signal, noise = (
        part.double().reshape(images, -1).square().sum(1) for part in (wanted, wanted.double() - got.double())
    )
    ratios = 10 * torch.log10(signal.clamp(min=1e-30) / noise.clamp(min=1e-30))
    return torch.where(noise > 0, ratios.clamp(-MOST_DB, MOST_DB), MOST_DB)
