"""A student of another input size than the images its run reads: in training it takes the teacher's and shrinks them.

So teacher and student learn from the same augmented image, each at its own resolution, and whatever reads a batch
(attacks, mixing, caches, other students) knows one size. A hook, since names of weights and taps must stay.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgekd.pipeline.choosing import student_module
from edgekd.pipeline.context import Context
from edgekd.students import AnySpec


def untaught(context: Context, spec: AnySpec) -> nn.Module:
    """A student with its first weights that takes the images of its run."""
    return taught_at(student_module(context, spec), spec.image_size)


def taught_at(student: nn.Module, image_size: int) -> nn.Module:
    """The student itself, from now on taking images of any size: those of another than its own are resized.

    Bilinear and antialiased as `fit_square`, whose pixels differ by their rounding: at most half a grey level.

    >>> import torch
    >>> taught_at(nn.Flatten(), 2)(torch.ones(1, 1, 4, 4)).shape
    torch.Size([1, 4])
    """

    def shrink(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        images: Tensor = inputs[0]
        if images.shape[-1] == image_size:
            return None
        size = (image_size, image_size)
        return (functional.interpolate(images, size, mode="bilinear", antialias=True),)

    student.register_forward_pre_hook(shrink)
    return student
