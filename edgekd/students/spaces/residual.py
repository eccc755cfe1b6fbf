"""Residual networks of basic blocks: two dense 3x3 convolutions. Source: He et al. 2016, "Deep Residual Learning"."""

from __future__ import annotations

from collections.abc import Iterator

from edgekd.students.space import StageChoice, StageSpace
from edgekd.students.spaces.bodies import DEPTHS, Task, bodies

NAME = "residual"


def space(task: Task) -> StageSpace:
    """Every width, and per stage its depth."""
    return StageSpace(NAME, task.in_channels, task.num_classes, bodies(task, _choices, activations=("relu",)))


def _choices(stage: int, stages: int) -> Iterator[StageChoice]:
    return (StageChoice("basic", 3, 1, False, depth) for depth in DEPTHS)
