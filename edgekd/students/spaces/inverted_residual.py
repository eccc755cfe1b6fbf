"""Inverted residuals and their dense kin, mixed freely: what every runtime runs in int8. The default space.

At equal multiply-adds dense (`fused`) blocks train some 3 times faster on a CPU, because they write a third of the
activations, and reach a higher fraction of a GPU's peak; inverted ones do more with fewer weights.
Source: Tan & Le 2021, "EfficientNetV2", section 3.2 and table 4; Sandler et al. 2018, "MobileNetV2".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from edgekd.students.space import StageChoice, StageSpace
from edgekd.students.spaces.bodies import DEPTHS, Task, bodies

NAME = "inverted-residual"


def space(task: Task) -> StageSpace:
    """Every width, and per stage: dense or inverted, kernel, expansion and depth."""
    return StageSpace(NAME, task.in_channels, task.num_classes, bodies(task, _choices))


def _choices(stage: int, stages: int) -> Iterator[StageChoice]:
    for expansion, depth in itertools.product((1, 2, 4), DEPTHS):
        yield StageChoice("fused", 3, expansion, False, depth)
    for kernel, expansion, depth in itertools.product((3, 5), (3, 4, 6), DEPTHS):
        yield StageChoice("inverted", kernel, expansion, False, depth)
