"""Search spaces, one small file each. `stage_space` makes those of stages; a zoo and a pruned teacher are lists."""

from __future__ import annotations

from collections.abc import Callable

from edgekd.students.space import StageSpace
from edgekd.students.spaces import gated, hybrid, inverted_residual, pruned, residual, zoo
from edgekd.students.spaces.bodies import Task

STAGE_SPACES: dict[str, Callable[[Task], StageSpace]] = {
    inverted_residual.NAME: inverted_residual.space,
    gated.NAME: gated.space,
    residual.NAME: residual.space,
    hybrid.NAME: hybrid.space,
}
DEFAULT = inverted_residual.NAME
NAMES: tuple[str, ...] = (*STAGE_SPACES, zoo.NAME, pruned.NAME)

__all__ = ["DEFAULT", "NAMES", "STAGE_SPACES", "Task", "pruned", "zoo"]
