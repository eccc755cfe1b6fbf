"""Losses and terms: what is compared, with whom, and how much it weighs.

To add a loss: one file in `losses/` with a subclass of `Loss`. Its projectors and heads are parameters (trained with
the student, dropped at export), its memory banks are buffers; both are in the checkpoint without further ado.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.sources import Signals

_PLAIN = (bool, int, float, str, tuple)  # what an option is, as a loss keeps it
_LOOKS = (0.0, 0.25, 0.5, 0.75)  # points of a stage that tell one schedule from another


class Needs(NamedTuple):
    """Taps that a loss reads from its student and from its teacher."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Context:
    """What a few losses must know beyond signals.

    labels: int64 (training images,), in the order of `Batch.index`. seed: the stage's, for draws that every process
    must make alike. student, teacher: the models themselves; a teacher that is no module (a file in another runtime,
    a cache) is None.
    """

    labels: Tensor
    seed: int
    student: nn.Module | None
    teacher: nn.Module | None


class Loss(nn.Module, ABC):
    """A scalar from two models' signals. Runs in float32, outside autocast; the teacher's signals carry no gradient.

    For a term without a source, `teacher` is the student itself. published_weight: what its authors or the reference
    code multiply it with, beside a cross-entropy of weight about 1; the docstring says where it comes from. may_rise:
    whether a healthy training may end with more of it (a game with an opponent that learns too).
    """

    name: ClassVar[str] = "loss"
    published_weight: ClassVar[float] = 1.0
    may_rise: ClassVar[bool] = False

    def needs(self) -> Needs:
        """The taps it reads: none unless overridden."""
        return Needs()

    def prepare(self, context: Context) -> None:
        """Called once, before `build`: keep what forward needs of the data or the models (bank sizes, a classifier).

        Raises: InputError: a model has not what the loss reads.
        """

    def build(self, student: Signals, teacher: Signals) -> None:
        """Called once with a first batch's signals: check that they agree, make projectors of the real shapes.

        Raises: InputError: the two cannot be compared.
        """

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """The loss: a float32 scalar, the mean over the batch."""


@dataclass(frozen=True, eq=False)
class Term:
    """A weighted loss between a student and a source.

    source: name of a teacher or of another student; None: the loss reads only the student and the labels.
    weight: a number, or a function of progress in [0, 1). A term of weight 0 is not computed.
    """

    loss: Loss
    weight: float | Callable[[float], float] = 1.0
    source: str | None = None
    student: str = "student"
    name: str = ""

    @property
    def label(self) -> str:
        """Its name in histories and errors: `name`, or the loss's."""
        return self.name or self.loss.name

    def weight_at(self, progress: float) -> float:
        """The weight at a point of the stage."""
        return self.weight(progress) if callable(self.weight) else self.weight

    def settings(self) -> str:
        """Weight, source and options in words, which a checkpoint must agree with to be resumed.

        >>> from edgekd.distill import SoftTarget
        >>> Term(SoftTarget(temperature=2.0), source="teacher", weight=0.9).settings()
        'weight 0.9, source teacher, student student, soft_target_kl temperature 2.0'
        """
        weight = [self.weight_at(share) for share in _LOOKS] if callable(self.weight) else self.weight
        found = [f"weight {weight}, source {self.source}, student {self.student}"]
        for loss in (module for module in self.loss.modules() if isinstance(module, Loss)):
            options = {k: v for k, v in vars(loss).items() if isinstance(v, _PLAIN) and k[0] != "_" and k != "training"}
            found.append(" ".join([loss.name, *(f"{k} {v}" for k, v in options.items())]))
        return ", ".join(found)
