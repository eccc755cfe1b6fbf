"""Inverted residuals with or without squeeze-and-excite, ReLU6 or hard swish: MobileNetV3's space.

More accurate per multiply-add, slower per multiply-add, and some integer NPUs run neither operator: not the default.
Source: Howard et al. 2019, "Searching for MobileNetV3".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from edgekd.students.space import StageChoice, StageSpace
from edgekd.students.spaces.bodies import DEPTHS, Task, bodies

NAME = "gated"


def space(task: Task) -> StageSpace:
    """Every width and activation, and per stage: kernel, expansion, squeeze-and-excite and depth."""
    found = bodies(task, _choices, activations=("relu6", "hardswish"))
    return StageSpace(NAME, task.in_channels, task.num_classes, found)


def _choices(stage: int, stages: int) -> Iterator[StageChoice]:
    for kernel, expansion, gate, depth in itertools.product((3, 5, 7), (3, 4, 6), (False, True), DEPTHS):
        yield StageChoice("inverted", kernel, expansion, gate, depth)
