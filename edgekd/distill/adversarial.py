"""Adversarial matching: a discriminator learns to tell student from teacher, the student learns to pass for it.

Sources: Goodfellow et al. 2014 (non-saturating loss); Xu, Hsu & Huang 2018, "Training Shallow and Thin Networks for
Acceleration via Knowledge Distillation with Conditional Adversarial Networks" (arXiv 1709.00513); Mescheder, Geiger &
Nowozin 2018 (R1 penalty).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.features import as_vector
from edgekd.distill.players import Player, Roster, average_gradients
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError


class Discriminator(Player):
    """Three linear layers from a vector to one logit (teacher high, student low), with an Adam of their own.

    It learns one step per student step, on what its `Pass` loss compared in that step. gradient_penalty: R1's gamma, on
    the teacher's side. Raises: InputError: a value out of its range.
    """

    def __init__(self, *, hidden: int = 128, learning_rate: float = 1e-3, gradient_penalty: float = 1.0) -> None:
        if hidden < 1 or not learning_rate > 0 or not gradient_penalty >= 0:
            raise InputError(f"discriminator: hidden {hidden}, learning_rate {learning_rate}: give values above 0")
        self.hidden, self.learning_rate, self.gradient_penalty = hidden, learning_rate, gradient_penalty
        self.net: nn.Module = nn.Identity()
        self.optimiser: torch.optim.Optimizer | None = None
        self._compared: list[tuple[Tensor, Tensor]] = []

    def build(self, width: int) -> None:
        """Layers for vectors of this width; the stage's seed decides their start."""
        hidden = self.hidden
        self.net = nn.Sequential(
            nn.Linear(width, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def judge(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits for the student's vectors (batch, width); both are remembered for the step that follows."""
        self._compared.append((student.detach(), teacher.detach()))
        answer: Tensor = self.net.requires_grad_(False)(student)
        return answer

    def join(self, roster: Roster) -> None:
        """Raises: InputError: no `Pass` loss of the stage uses it."""
        if isinstance(self.net, nn.Identity):
            raise InputError("a discriminator that no loss asks", fix="add a term with Pass(discriminator)")
        self.net.to(roster.device)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))

    def after(self, batch: Batch, spoken: Mapping[str, Signals], taught: Mapping[str, Signals]) -> None:
        """One step on what was compared."""
        if self.optimiser is None:
            return
        compared, self._compared = self._compared, []
        self.net.requires_grad_(True)
        for student, teacher in compared:
            self.optimiser.zero_grad(set_to_none=True)
            self.loss(student, teacher).backward()  # type: ignore[no-untyped-call]
            average_gradients(self.net)
            self.optimiser.step()

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """softplus(-D(teacher)) + softplus(D(student)) + gamma/2 |dD/dteacher|^2. Shapes: (batch, width) each -> ()."""
        teacher = teacher.clone().requires_grad_()
        real = self.net(teacher)
        value = functional.softplus(-real).mean() + functional.softplus(self.net(student)).mean()
        if self.gradient_penalty:
            (slope,) = torch.autograd.grad(real.sum(), teacher, create_graph=True)
            value = value + self.gradient_penalty / 2 * slope.square().sum(1).mean()
        return value

    def state_dict(self) -> dict[str, Any]:
        """Net and optimiser."""
        return {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict() if self.optimiser else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.net.load_state_dict(state["net"])
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])


class Pass(Loss):
    """softplus(-D(x)): the student passes for the teacher. x: a tap, projected to the teacher's width, or the logits.

    The discriminator is a player of the stage; it is no part of this loss, so the student's optimiser leaves it alone.
    Raises: InputError: only one of the two taps is given.
    """

    name: ClassVar[str] = "adversarial"
    published_weight: ClassVar[float] = 0.1
    may_rise: ClassVar[bool] = True

    def __init__(
        self, discriminator: Discriminator, *, student_tap: str | None = None, teacher_tap: str | None = None
    ) -> None:
        super().__init__()
        if (student_tap is None) != (teacher_tap is None):
            raise InputError("adversarial: one tap without the other", fix="give both taps, or none for the logits")
        self._discriminator = discriminator
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.projector: nn.Module = nn.Identity()

    def needs(self) -> Needs:
        """Both taps, or none."""
        if self.student_tap is None or self.teacher_tap is None:
            return Needs()
        return Needs((self.student_tap,), (self.teacher_tap,))

    def build(self, student: Signals, teacher: Signals) -> None:
        """The projector where the widths differ, and the discriminator's layers."""
        mine, theirs = self._read(student, teacher)
        if mine.shape[1] != theirs.shape[1]:
            if self.student_tap is None:
                raise InputError(f"adversarial: {mine.shape[1]} classes, the teacher has {theirs.shape[1]}")
            self.projector = nn.Linear(mine.shape[1], theirs.shape[1])
        self._discriminator.build(theirs.shape[1])

    def _read(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        if self.student_tap is None or self.teacher_tap is None:
            return student.logits, teacher.logits
        return as_vector(student.taps[self.student_tap]), as_vector(teacher.taps[self.teacher_tap])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: those of the taps, or logits (batch, classes) -> ()."""
        mine, theirs = self._read(student, teacher)
        return functional.softplus(-self._discriminator.judge(self.projector(mine), theirs)).mean()
