"""Losses between features: pairs of taps, seen as maps on a common grid, as vectors, or as they are.

A method is a subclass of `ComparedPairs` that says which view it takes and how two features are compared, as
`attention_transfer.py`; one that needs all pairs at once is a `PairLoss` with a forward of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.features import as_map, as_vector, common_grid
from edgekd.distill.losses.processes import gathered, gathered_with_gradient
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError

Taps = str | Sequence[str]


def taps_of(taps: Taps) -> tuple[str, ...]:
    """One tap or several, as a tuple.

    >>> taps_of("layer1"), taps_of(["layer1", "layer2"])
    (('layer1',), ('layer1', 'layer2'))
    """
    return (taps,) if isinstance(taps, str) else tuple(taps)


class PairLoss(Loss):
    """A loss over pairs (student tap, teacher tap), in order; each may be one tap or several.

    view: how `pairs` gives its features: `map` (both on the coarser grid), `own_map` (each on its own grid), `vector`,
    or `raw`. equal_channels: whether the method has no projector and needs the same channels.
    Raises: InputError: the numbers of taps differ, or there are none.
    """

    view: ClassVar[Literal["map", "own_map", "vector", "raw"]] = "map"
    equal_channels: ClassVar[bool] = False

    def __init__(self, student_tap: Taps, teacher_tap: Taps) -> None:
        super().__init__()
        self.student_taps, self.teacher_taps = taps_of(student_tap), taps_of(teacher_tap)
        if len(self.student_taps) != len(self.teacher_taps) or not self.student_taps:
            numbers = f"{len(self.student_taps)} student taps and {len(self.teacher_taps)} teacher taps"
            raise InputError(f"{self.name} got {numbers}", fix="give one teacher tap for each student tap")

    def needs(self) -> Needs:
        """All its taps."""
        return Needs(self.student_taps, self.teacher_taps)

    def pairs(self, student: Signals, teacher: Signals) -> list[tuple[Tensor, Tensor]]:
        """Student's and teacher's feature of each pair, in the method's view. Raises: InputError: no such view."""
        return [
            self._seen(student.taps[a], teacher.taps[b], f"student tap '{a}'", f"teacher tap '{b}'")
            for a, b in zip(self.student_taps, self.teacher_taps, strict=True)
        ]

    def _seen(self, mine: Tensor, theirs: Tensor, my_name: str, their_name: str) -> tuple[Tensor, Tensor]:
        if self.view == "raw":
            return mine, theirs
        if self.view == "vector":
            return as_vector(mine, my_name), as_vector(theirs, their_name)
        mine, theirs = as_map(mine, my_name), as_map(theirs, their_name)
        return common_grid(mine, theirs) if self.view == "map" else (mine, theirs)

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: a feature cannot be seen so, or the channels differ where they must not."""
        for (mine, theirs), tap in zip(self.pairs(student, teacher), self.student_taps, strict=True):
            if self.equal_channels and mine.shape[1] != theirs.shape[1]:
                raise InputError(
                    f"{self.name}: student tap '{tap}' has {mine.shape[1]} channels, the teacher's {theirs.shape[1]}",
                    fix="tap layers of the same width, or use a method with a projector (hint)",
                )


class ComparedPairs(PairLoss):
    """The sum of `compare` over the pairs.

    between_images: whether it compares the images of a batch with each other; it then sees those of all processes.
    """

    between_images: ClassVar[bool] = False

    @abstractmethod
    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """The loss of one pair: a scalar. pair: its number, for projectors and weights."""

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: those of the taps -> ()."""
        pairs = self.pairs(student, teacher)
        if self.between_images:
            pairs = [(gathered_with_gradient(a), gathered(b)) for a, b in pairs]
        losses = [self.compare(a, b, i) for i, (a, b) in enumerate(pairs)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
