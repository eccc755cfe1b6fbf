"""Chains: a student becomes the next one's teacher (teacher assistants, born-again generations).

Sources: Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant" (arXiv 1902.03393); Furlanello et
al. 2018, "Born-Again Neural Networks" (arXiv 1805.04770).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from edgekd.errors import InputError

# The project's decision guide: by parameters an assistant from 10x on; by accuracy teacher / student alone.
PARAMETERS_PER_LINK = 10.0
ONE_ASSISTANT_FROM, SEVERAL_FROM = 1.5, 3.0


@dataclass(frozen=True)
class ChainPlan:
    """Sizes of the assistants in parameters, largest first, and why so many."""

    assistants: tuple[int, ...]
    why: str


def plan_chain(
    teacher_parameters: int,
    student_parameters: int,
    *,
    accuracy_ratio: float | None = None,
    assistants: int | None = None,
) -> ChainPlan:
    """How many assistants, and their sizes: geometric steps between teacher and student.

    accuracy_ratio: the teacher's accuracy over that of the student trained alone, where it was measured; it decides
    before the sizes do. assistants: as many, whatever the gap. Raises: InputError: a size or number out of range.

    >>> plan_chain(8_000_000, 2_000_000).assistants
    ()
    >>> plan_chain(40_000_000, 400_000).assistants
    (4000000,)
    """
    if teacher_parameters < 1 or student_parameters < 1 or (assistants is not None and assistants < 0):
        raise InputError(
            f"chain from {teacher_parameters} to {student_parameters} parameters", fix="give sizes above 0"
        )
    gap = teacher_parameters / student_parameters
    count, why = (assistants, "as asked") if assistants is not None else _count(gap, accuracy_ratio)
    if gap <= 1 and count:
        raise InputError(
            f"the student is as large as its teacher ({student_parameters} parameters)", fix="no assistant"
        )
    step = gap ** (1 / (count + 1))
    return ChainPlan(tuple(round(teacher_parameters / step**k) for k in range(1, count + 1)), why)


def _count(gap: float, accuracy_ratio: float | None) -> tuple[int, str]:
    if accuracy_ratio is not None:
        count = 0 if accuracy_ratio < ONE_ASSISTANT_FROM else 1 if accuracy_ratio < SEVERAL_FROM else 2
        return count, f"the teacher is {accuracy_ratio:.2f} times as accurate as the student alone"
    count = 0
    while gap >= PARAMETERS_PER_LINK and gap ** (1 / (count + 1)) >= PARAMETERS_PER_LINK * (1 + 1e-9):
        count += 1
    count = max(count, 1) if gap >= PARAMETERS_PER_LINK else 0
    return count, f"the teacher has {gap:.1f} times the student's parameters"


def parameters_of(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def width_for(parameters: int, new_student: Callable[[float], nn.Module], *, widest: float = 16.0) -> float:
    """The least width factor in [1, widest] at which `new_student(width)` has so many parameters, by bisection.

    >>> width_for(16, lambda width: nn.Linear(round(4 * width), 1, bias=False))
    3.88
    """
    low, high = 1.0, widest
    for _ in range(12):
        middle = (low + high) / 2
        if parameters_of(new_student(middle)) < parameters:
            low = middle
        else:
            high = middle
    return round(high, 2)
