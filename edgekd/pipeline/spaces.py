"""The spaces of stages that a run searches, for its images and classes."""

from __future__ import annotations

from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.plan import Plan
from edgekd.students import StageSpace
from edgekd.students.spaces import STAGE_SPACES, Task


def task_of(inputs: Inputs | Context) -> Task:
    """The images and classes of a run."""
    pre = inputs.dataset.preprocessing
    return Task(inputs.image_sizes, pre.channels, inputs.dataset.num_classes)


def stage_spaces(inputs: Inputs | Context, plan: Plan, image_size: int | None = None) -> dict[str, StageSpace]:
    """Those of the plan's spaces that are made of stages, by name; a zoo and the pruned teacher are lists.

    image_size: px, to have the students of one size alone.
    """
    task = task_of(inputs) if image_size is None else task_of(inputs)._replace(image_sizes=(image_size,))
    return {name: STAGE_SPACES[name](task) for name in plan.spaces if name in STAGE_SPACES}
