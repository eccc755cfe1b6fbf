"""Players: who else learns, or changes the game, beside the students: a moving-average teacher, a discriminator, an
attacker. A player may be a source too. Its state is in the checkpoint; its optimiser is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from edgekd.data.dataset import Dataset
from edgekd.distill.batches import Batch
from edgekd.distill.losses.processes import world
from edgekd.distill.sources import Live, Signals, Source
from edgekd.distill.training import Training


@dataclass(frozen=True, eq=False)
class Roster:
    """Who takes part in a stage, handed to each player once, after all were bound and before the first batch."""

    students: Mapping[str, Live]
    sources: Mapping[str, Source]
    dataset: Dataset
    device: torch.device
    training: Training


class Player:
    """Override what is needed. A step is: `before`, teachers, students, backward, `after`, optimiser, `after_step`.

    With gradient accumulation all but `after_step` come once per part of the batch. Randomness comes from torch's
    default generator, which the loop seeds at each step.
    """

    def join(self, roster: Roster) -> None:
        """Get ready. Raises: InputError: somebody it needs is missing."""

    def before(self, batch: Batch) -> Batch:
        """The batch as students (`images`) and teachers (`teacher_images` where set) shall see it."""
        return batch

    def after(self, batch: Batch, spoken: Mapping[str, Signals], taught: Mapping[str, Signals]) -> None:
        """What the students and the sources said about the batch, by name, without gradient."""

    def after_step(self, step: int) -> None:
        """The students' weights are new; `step` was the one that ended, from 0."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, enough to go on bit for bit."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back; comes after `join`."""


def average_gradients(module: nn.Module) -> None:
    """The mean gradient over all processes, for a module that learns outside the students' DDP wrapper."""
    count = world()[1]
    if count == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= count
