"""Hints: a middle layer of the student, through a linear projector, matches one of the teacher.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, with a 1x1 convolution as regressor.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError


def align(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both features on the same grid, channels last: (batch, positions, channels).

    The finer of two maps (batch, channels, height, width) is averaged down to the coarser, and so are tokens
    (batch, tokens, channels) in their row; features of different kinds are averaged to one position.
    Raises: InputError: a feature has neither 2, 3 nor 4 dimensions.

    >>> import torch
    >>> [tuple(f.shape) for f in align(torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 2, 2))]
    [(2, 4, 8), (2, 4, 16)]
    """
    for feature in (student, teacher):
        if feature.ndim not in (2, 3, 4):
            raise InputError(f"a hint needs features of 2, 3 or 4 dimensions, got {tuple(feature.shape)}")
    if student.ndim != teacher.ndim:
        return _positions(student).mean(1, keepdim=True), _positions(teacher).mean(1, keepdim=True)
    if student.ndim == 4:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        student, teacher = (functional.adaptive_avg_pool2d(f, size) for f in (student, teacher))
    elif student.ndim == 3:
        count = min(student.shape[1], teacher.shape[1])
        student, teacher = (
            functional.adaptive_avg_pool1d(f.transpose(1, 2), count).transpose(1, 2) for f in (student, teacher)
        )
    return _positions(student), _positions(teacher)


def _positions(feature: Tensor) -> Tensor:
    if feature.ndim == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature.unsqueeze(1) if feature.ndim == 2 else feature


class Hint(Loss):
    """Mean squared error between the projected student feature and the teacher's, after `align`.

    Works for feature maps, vectors and tokens. Averaging down commutes with the projector, so it comes first: a linear
    layer per position is the 1x1 convolution of the paper.
    """

    name: ClassVar[str] = "hint"

    def __init__(self, student_tap: str, teacher_tap: str) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.projector: nn.Module = nn.Identity()

    def needs(self) -> Needs:
        """One tap each."""
        return Needs((self.student_tap,), (self.teacher_tap,))

    def build(self, student: Signals, teacher: Signals) -> None:
        """A projector from the student's channels to the teacher's."""
        mine, theirs = align(student.taps[self.student_tap], teacher.taps[self.teacher_tap])
        self.projector = nn.Linear(mine.shape[-1], theirs.shape[-1], device=mine.device)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: any that `align` takes -> ()."""
        mine, theirs = align(student.taps[self.student_tap], teacher.taps[self.teacher_tap])
        loss: Tensor = functional.mse_loss(self.projector(mine), theirs)
        return loss
