"""Convolutions first, self-attention on the small maps after them. Source: Graham et al. 2021, "LeViT"."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from edgekd.students.space import StageChoice, StageSpace
from edgekd.students.spaces.bodies import DEPTHS, Task, bodies

NAME = "hybrid"
ATTENTION_STAGES = 2


def space(task: Task) -> StageSpace:
    """Every width; the last two stages attend, those before them are inverted or dense."""
    found = bodies(task, _choices, activations=("hardswish",))
    return StageSpace(NAME, task.in_channels, task.num_classes, found)


def _choices(stage: int, stages: int) -> Iterator[StageChoice]:
    if stage >= max(1, stages - ATTENTION_STAGES):
        for expansion, depth in itertools.product((2, 4), DEPTHS):
            yield StageChoice("attention", 3, expansion, False, depth)
        return
    for block, expansion, depth in itertools.product(("fused", "inverted"), (2, 4), DEPTHS):
        yield StageChoice("fused" if block == "fused" else "inverted", 3, expansion, False, depth)
