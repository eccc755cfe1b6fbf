"""The teacher itself with a fraction of every layer's channels gone: best for a student 2 to 3 times smaller.

It starts from the teacher's weights and its features pair with the teacher's one to one; far beyond 4 times fewer
multiply-adds a new architecture does better. Latency is not monotone in the ratio.
"""

from __future__ import annotations

from edgekd.students.spaces.bodies import Task
from edgekd.students.spec import PrunedSpec

NAME = "pruned"
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85)


def specs(architecture: str, task: Task) -> list[PrunedSpec]:
    """One student per ratio and image size."""
    return [
        PrunedSpec(
            architecture=architecture,
            ratio=ratio,
            image_size=image_size,
            in_channels=task.in_channels,
            num_classes=task.num_classes,
        )
        for image_size in task.image_sizes
        for ratio in RATIOS
    ]
