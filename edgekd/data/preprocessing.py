"""From pixels to a model's input: the one place where images are normalised. Nothing here reads files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from edgekd.errors import InputError


@dataclass(frozen=True)
class Preprocessing:
    """What a model's input is: `(pixel / 255 - mean) / std` per channel, at a square size in pixels.

    mean, std: one value per channel, of pixel / 255. `to_dict` is what a bundle carries to the device.
    Raises: InputError: the size is under 1, or mean or std has not one positive-std value per channel.

    >>> p = Preprocessing(image_size=2, channels=1, mean=(0.5,), std=(0.5,))
    >>> p.normalise(torch.tensor([[[[0, 255], [255, 0]]]], dtype=torch.uint8)).flatten().tolist()
    [-1.0, 1.0, 1.0, -1.0]
    >>> Preprocessing.from_dict(p.to_dict()) == p
    True
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.channels < 1:
            raise InputError(
                f"preprocessing: image_size {self.image_size}, channels {self.channels}: both must be >= 1"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"preprocessing: {self.channels} channels but {len(self.mean)} means and {len(self.std)} stds"
            )
        if min(self.std) <= 0:
            raise InputError(f"preprocessing: std {self.std} must be positive")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.channels, self.image_size, self.image_size

    def normalise(self, images: Tensor) -> Tensor:
        """Uint8 (batch, channels, height, width) -> float32 of the same shape and device: the model's input.

        Raises: ValueError: not uint8 NCHW with this many channels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"normalise takes uint8 (batch, {self.channels}, height, width), got {got}")
        scale, offset = self._scale_and_offset(images.device)
        return images.mul(scale).add_(offset)  # uint8 times float32 is float32, in one pass

    @lru_cache(maxsize=32)  # noqa: B019 - a value object, and few of them
    def _scale_and_offset(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """One multiply-add per pixel: x * 1/(255 std) - mean/std."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=device)
        offset = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=device)
        return scale.view(1, -1, 1, 1), offset.view(1, -1, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with lists for mean and std."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; other keys are ignored. Raises: InputError: a key is missing or is not a number."""
        try:
            return cls(
                image_size=int(document["image_size"]),
                channels=int(document["channels"]),
                mean=tuple(float(v) for v in document["mean"]),
                std=tuple(float(v) for v in document["std"]),
            )
        except KeyError as error:
            raise InputError(f"preprocessing: missing key {error}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"preprocessing: not a number ({error})") from error
