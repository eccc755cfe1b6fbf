"""A teacher: a frozen classifier, what its input is, and how a student's input is turned into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import InputError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL's convert("L") uses


@dataclass
class Teacher:
    """A classifier in eval mode without gradients, on its own normalised input: (batch, C, H, W) -> (batch, classes).

    fingerprint: sha256 of the weights' file. black_box: only logits can be had (an exported file), so no feature taps.
    facts: what the file says of itself (architecture, data, recipe, test_top1, ...), shown in the report.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    num_classes: int
    fingerprint: str
    black_box: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def adapt(self, student_preprocessing: Preprocessing) -> Adapted:
        """The teacher as a module that takes the student's normalised input.

        Its features lie under `module.` (a tap of the teacher's `layer3` is `module.layer3`).
        Raises: InputError: the channels cannot be converted.
        """
        return Adapted(self.module, source=student_preprocessing, to=self.preprocessing)


class Adapted(nn.Module):
    """Undo the student's normalisation, convert channels, resize (bilinear, antialiased), apply the teacher's.

    Shapes: (batch, source.channels, source.image_size, source.image_size) -> (batch, classes).
    Raises: InputError: neither side is grey and the channels differ.

    >>> grey = Preprocessing(image_size=4, channels=1, mean=(0.5,), std=(0.5,))
    >>> rgb = Preprocessing(image_size=4, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    >>> Adapted(nn.Flatten(), source=grey, to=rgb)(torch.ones(1, 1, 4, 4)).unique().tolist()
    [1.0]
    """

    def __init__(self, module: nn.Module, *, source: Preprocessing, to: Preprocessing) -> None:
        super().__init__()
        if source.channels != to.channels and 1 not in (source.channels, to.channels):
            raise InputError(f"the teacher takes {to.channels} channels, the student {source.channels}")
        self.module = module
        self.image_size, self.channels = to.image_size, to.channels
        self.same_input = source == to
        for name, values in (
            ("source_mean", source.mean),
            ("source_std", source.std),
            ("mean", to.mean),
            ("std", to.std),
            ("luma", _LUMA if source.channels == 3 else (1 / source.channels,) * source.channels),
        ):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Adapted:
        """Stays in eval mode: a teacher's batch statistics must not move while a student trains."""
        super().train(False)
        return self

    def convert(self, x: Tensor) -> Tensor:
        """The student's normalised input as the teacher's normalised input."""
        if self.same_input:
            return x
        pixels = x * self.get_buffer("source_std") + self.get_buffer("source_mean")
        if pixels.shape[1] != self.channels:
            grey = (pixels * self.get_buffer("luma")).sum(1, keepdim=True)
            pixels = grey.expand(-1, self.channels, -1, -1)
        if pixels.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        return (pixels - self.get_buffer("mean")) / self.get_buffer("std")

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.module(self.convert(x))
        return logits
