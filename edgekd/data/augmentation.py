"""Random flips and shifts of a batch, one draw per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(images: Tensor, *, generator: torch.Generator, flip: bool, shift_px: int) -> Tensor:
    """Mirror each image with p = 0.5 (if `flip`) and shift it by up to `shift_px` both ways, reflecting at the border.

    Shapes: uint8 (batch, channels, height, width) -> the same. The same generator state gives the same result.
    Raises: ValueError: shift_px is negative or not smaller than the image.

    >>> row = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    >>> same = augment(row, generator=torch.Generator().manual_seed(0), flip=False, shift_px=0)
    >>> bool((same == row).all())
    True
    """
    batch, _, height, width = images.shape
    if not 0 <= shift_px < min(height, width):
        raise ValueError(f"shift_px must be in [0, {min(height, width)}), got {shift_px}")
    shift = torch.randint(-shift_px, shift_px + 1, (2, batch, 1), generator=generator)
    return moved(images, shift, torch.rand(batch, 1, generator=generator) < 0.5 if flip else None)


def moved(images: Tensor, shift: Tensor, mirrored: Tensor | None) -> Tensor:
    """Each image shifted by (rows, columns), reflecting at the border, then mirrored where told.

    Shapes: uint8 (batch, channels, height, width), int64 (2, batch, 1), bool (batch, 1) or None -> the images' own.
    """
    batch, _, height, width = images.shape
    rows = _reflect(torch.arange(height) + shift[0], height)
    columns = _reflect(torch.arange(width) + shift[1], width)
    if mirrored is not None:
        columns = torch.where(mirrored, columns.flip(1), columns)
    flat = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, -1).to(images.device)
    return images.flatten(2).gather(2, flat.expand(-1, images.shape[1], -1)).view_as(images)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside [0, size) mirrored back, without repeating the border pixel."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
