"""Six common corruptions of images, as ImageNet-C and CIFAR-10-C have them, on uint8 tensors.

Source: Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261); the strengths are those of the authors' code, of CIFAR-10-C up to 64 px and of ImageNet-C above.
Noise is drawn by torch, so the images are alike and not the published ones. Brightness is added to every channel where
theirs is added to the value of HSV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekd.errors import InputError, did_you_mean

SMALL_PX = 64
SEVERITIES = (1, 3, 5)

_SMALL: dict[str, tuple[float, ...]] = {
    "gaussian noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "gaussian blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "jpeg": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}
_LARGE: dict[str, tuple[float, ...]] = {
    "gaussian noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "gaussian blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "jpeg": (25, 18, 15, 10, 7),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
}
CORRUPTIONS = tuple(_SMALL)


def corrupt(images: Tensor, corruption: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupted images: uint8 (batch, channels, height, width) -> the same. Equal arguments give equal images.

    Raises: InputError: no such corruption, or a severity outside 1 to 5. ValueError: not uint8 NCHW.

    >>> grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    >>> corrupt(grey, "brightness", 5).unique().tolist(), corrupt(grey, "gaussian blur", 5).unique().tolist()
    ([177], [100])
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"corrupt takes uint8 (batch, channels, height, width), got {images.dtype} {images.ndim}d")
    if corruption not in CORRUPTIONS:
        raise InputError(f"no corruption '{corruption}'", fix=did_you_mean(corruption, CORRUPTIONS))
    if severity not in range(1, 6):
        raise InputError(f"corruption '{corruption}' has no severity {severity}", fix="give 1 to 5")
    strengths = _SMALL if max(images.shape[2:]) <= SMALL_PX else _LARGE
    strength = strengths[corruption][severity - 1]
    if corruption == "jpeg":
        return _jpeg(images, round(strength))
    if corruption == "pixelate":
        return _pixelate(images, strength)
    changed = _CHANGES[corruption](images.float() / 255, strength, seed)
    return changed.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _noise(x: Tensor, strength: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return x + strength * torch.randn(x.shape, generator=generator).to(x.device)


def _blur(x: Tensor, sigma: float, _seed: int) -> Tensor:
    """Separable, truncated at four sigmas, nearest at the border, as scikit-image's gaussian."""
    radius = max(1, math.ceil(4 * sigma))
    place = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (place / sigma).square())
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    across = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    x = functional.conv2d(functional.pad(x, (radius, radius, 0, 0), mode="replicate"), across, groups=channels)
    return functional.conv2d(functional.pad(x, (0, 0, radius, radius), mode="replicate"), down, groups=channels)


def _contrast(x: Tensor, strength: float, _seed: int) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * strength + mean


def _brightness(x: Tensor, strength: float, _seed: int) -> Tensor:
    return x + strength


_CHANGES: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "gaussian noise": _noise,
    "gaussian blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
}


def _pixelate(images: Tensor, strength: float) -> Tensor:
    """Pillow's box filter down and up again, channel by channel."""
    from PIL import Image

    height, width = images.shape[2:]
    small = (max(1, int(width * strength)), max(1, int(height * strength)))
    changed = [
        np.asarray(
            Image.fromarray(plane).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
        )
        for plane in images.cpu().flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(changed)).view(images.shape).to(images.device)


def _jpeg(images: Tensor, quality: int) -> Tensor:
    """Encoded and decoded; channels that JPEG has no form for go one by one."""
    from torchvision.io import decode_jpeg, encode_jpeg

    def one(image: Tensor) -> Tensor:
        decoded: Tensor = decode_jpeg(encode_jpeg(image, quality=quality))
        return decoded

    cpu = images.cpu()
    if images.shape[1] in (1, 3):
        found: Sequence[Tensor] = [one(image) for image in cpu]
    else:
        found = [torch.cat([one(channel.unsqueeze(0)) for channel in image]) for image in cpu]
    return torch.stack(list(found)).to(images.device)
