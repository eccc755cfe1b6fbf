"""Moving averages of weights: of a student for validation and export, or as a teacher of its own (mean teacher).

Source: Polyak & Juditsky 1992; Tarvainen & Valpola 2017, "Mean teachers are better role models", section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.players import Player
from edgekd.distill.sources import Live, Signals
from edgekd.errors import InputError


def decay_at(step: int, decay: float) -> float:
    """The share of the old average after a step (from 0): small at first, so that the random start is forgotten.

    Source: Tarvainen & Valpola 2017, code: min(1 - 1/(step + 1), decay), one step later here.

    >>> [round(decay_at(step, 0.9), 2) for step in (0, 1, 3, 1000)]
    [0.5, 0.67, 0.8, 0.9]
    """
    return min(1 - 1 / (step + 2), decay)


class WeightAverage:
    """The average of the parameters and float buffers of some models; whole numbers (counters) are copied."""

    def __init__(self, models: Mapping[str, nn.Module], *, decay: float) -> None:
        self.models, self.decay = models, decay
        self._values = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}

    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        for name, model in self.models.items():
            move_towards(self._values[name], model.state_dict(), 1 - decay_at(step, self.decay))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The models hold their averages inside, and their own weights again afterwards."""
        own = {name: copy.deepcopy(model.state_dict()) for name, model in self.models.items()}
        self.install()
        try:
            yield
        finally:
            for name, model in self.models.items():
                model.load_state_dict(own[name])

    def install(self) -> None:
        """The models take their averages for good."""
        for name, model in self.models.items():
            model.load_state_dict(self._values[name])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A state dict by model."""
        return {name: values.copy() for name, values in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the averages back."""
        for name, values in self._values.items():
            move_towards(values, state[name], 1.0)


@torch.no_grad()
def move_towards(average: Mapping[str, Tensor], new: Mapping[str, Any], share: float) -> None:
    """average += share * (new - average) in place, for all float tensors; others are copied."""
    pairs = [(old, new[name]) for name, old in average.items() if isinstance(old, Tensor)]
    floats = [(old, value) for old, value in pairs if old.is_floating_point()]
    if share < 1 and floats:
        torch._foreach_lerp_([old for old, _ in floats], [value for _, value in floats], share)
        pairs = [(old, value) for old, value in pairs if not old.is_floating_point()]
    for old, value in pairs:
        old.copy_(value)


class MeanTeacher(Player):
    """A source: the moving average of a student that learns in the same stage, in eval mode.

    student: the very module that is among the stage's students. decay: 0.999 in the paper, reached slowly (`decay_at`);
    its batch norm statistics are averaged too. bfloat16: run it under autocast.
    Raises: InputError: decay is outside [0, 1).
    """

    def __init__(self, student: nn.Module, *, decay: float = 0.999, bfloat16: bool = False) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"mean teacher: decay must be in [0, 1), got {decay}")
        self.student, self.decay, self.bfloat16 = student, decay, bfloat16
        self._live: Live | None = None

    @property
    def live(self) -> Live:
        """The averaged model. Raises: InputError: `bind` has not come."""
        if self._live is None:
            raise InputError("the mean teacher is not bound yet", fix="use it as a source of a stage")
        return self._live

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """A copy of the student as it is now."""
        self._live = Live(copy.deepcopy(self.student), bfloat16=self.bfloat16)
        return self.live.bind(images, taps)

    def signals(self, batch: Batch) -> Signals:
        """What the average says."""
        return self.live.signals(batch)

    def close(self) -> None:
        """Nothing of the caller's was changed."""

    def after_step(self, step: int) -> None:
        """The average takes the student's new weights in."""
        move_towards(self.live.model.state_dict(), self.student.state_dict(), 1 - decay_at(step, self.decay))

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return {"average": self.live.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the averaged weights back."""
        self.live.model.load_state_dict(state["average"])
