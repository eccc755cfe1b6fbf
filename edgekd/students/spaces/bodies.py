"""What the spaces of stages share: how strides follow the image and channels follow the width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from edgekd.students.space import Body, StageChoice
from edgekd.students.spec import Activation

_FINAL_PX = 4  # the last map has at least this many pixels a side
_LARGE_IMAGE_PX = 64  # from here on the stem may halve without losing the object
_BASE_CHANNELS = (32, 64, 96, 160, 256)
WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
DEPTHS = (1, 2, 3, 4)


class Task(NamedTuple):
    """What every student of a run has: its images and its classes. image_sizes: those it may choose from, in px."""

    image_sizes: tuple[int, ...]
    in_channels: int
    num_classes: int


def strides_for(image_size: int) -> tuple[int, ...]:
    """Stride of the stem, then of each stage: 28 and 32 px keep a stride-1 stem, and the last map is 4 to 7 px.

    >>> strides_for(28), strides_for(32), strides_for(64), strides_for(224)
    ((1, 2, 2), (1, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2, 2))
    """
    halvings, size = 0, image_size
    while size // 2 >= _FINAL_PX and halvings < len(_BASE_CHANNELS):
        size, halvings = -(-size // 2), halvings + 1
    if image_size >= _LARGE_IMAGE_PX:
        return (2,) * halvings
    return (1, *(2,) * halvings) if halvings else (1, 1)


def bodies(
    task: Task,
    choices: Callable[[int, int], Iterable[StageChoice]],
    *,
    activations: tuple[Activation, ...] = ("relu6",),
    widths: tuple[float, ...] = WIDTHS,
) -> tuple[Body, ...]:
    """One body per image size, width and activation. choices: (number of the stage, how many there are) -> its own."""
    found = []
    for image_size, width, activation in itertools.product(task.image_sizes, widths, activations):
        stem_stride, *strides = strides_for(image_size)
        channels = tuple(multiple_of_16(width * base) for base in _BASE_CHANNELS[: len(strides)])
        found.append(
            Body(
                image_size=image_size,
                width=width,
                activation=activation,
                stem_channels=multiple_of_16(width * 12),
                stem_stride=stem_stride,
                channels=channels,
                strides=tuple(strides),
                head_channels=multiple_of_16(2 * channels[-1]),
                choices=tuple(tuple(choices(number, len(strides))) for number in range(len(strides))),
            )
        )
    return tuple(found)


def multiple_of_16(channels: float) -> int:
    """Matrix units (AMX tiles, tensor cores, int8 dot products) waste what is not a multiple of 16 or 32.

    Measured at 28 px, batch 128, bf16, 2 x86 threads with AMX, in one run: a body of 24 and 48 channels (9.0 MMACs)
    took 1.5 times the training step of one of 32 and 64 channels (9.5 MMACs).
    """
    return max(16, int(channels / 16 + 0.5) * 16)
