"""Attacks: images moved within a small box so that a model errs; to train on (ARD) and to measure robustness with.

Sources: Madry et al. 2018 (PGD); Goldblum et al. 2020, "Adversarially Robust Distillation" (arXiv 1905.09747);
Carlini & Wagner 2017 (the margin as objective, arXiv 1608.04644).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data.dataset import Split
from edgekd.data.preprocessing import Preprocessing
from edgekd.distill.batches import Batch
from edgekd.distill.losses.soft_target import soft_target_kl
from edgekd.distill.players import Player, Roster
from edgekd.distill.sources import device_of, evaluating, logits_of
from edgekd.errors import InputError, did_you_mean

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Box:
    """How far and how: sup norm of at most `epsilon` in pixels of [0, 1], in `steps` of size `step`.

    Raises: InputError: a value that is not positive.
    """

    epsilon: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and self.step > 0 and self.steps > 0):
            raise InputError(
                f"attack: epsilon {self.epsilon}, step {self.step}, steps {self.steps}: give positive values"
            )


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the label's, summed: what a margin attack climbs.

    Shapes: (batch, classes), (batch,) -> ().

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).item()
    -1.0
    """
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own).sum()


def perturb(
    answer: Callable[[Tensor], Tensor], images: Tensor, climb: Objective, *, box: Box, preprocessing: Preprocessing
) -> Tensor:
    """Projected gradient ascent on `climb(answer(images))` from a random point of the box.

    images: normalised float32 (batch, channels, height, width) -> the same; every pixel stays within [0, 1] and within
    epsilon of where it was. Draws from torch's default generator.
    """
    scale = images.new_tensor(preprocessing.std).view(1, -1, 1, 1)
    mean = images.new_tensor(preprocessing.mean).view(1, -1, 1, 1)
    radius = box.epsilon / scale
    lowest = torch.maximum(images - radius, -mean / scale)
    highest = torch.minimum(images + radius, (1 - mean) / scale)
    moved = images + radius * (2 * torch.rand_like(images) - 1)
    moved = moved.clamp(lowest, highest)
    for _ in range(box.steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(climb(answer(moved).float()), moved)
        moved = (moved.detach() + box.step / scale * slope.sign()).clamp(lowest, highest)
    return moved.detach()


class Attacker(Player):
    """A student sees attacked images, its teachers the plain ones (ARD): soft targets make it robust.

    against: what the attack climbs: `labels`, the student's cross-entropy (ARD); `teacher`, its divergence from the
    source named `teacher` (RSLAD). The student answers in eval mode meanwhile, so that no statistic moves.
    Raises: InputError: neither of the two.
    """

    def __init__(
        self, box: Box | None = None, *, student: str = "student", against: Literal["labels", "teacher"] = "labels"
    ) -> None:
        if against not in ("labels", "teacher"):
            raise InputError(f"attacker: against '{against}'", fix=did_you_mean(against, ("labels", "teacher")))
        self.box, self.student, self.against = box or Box(), student, against
        self._roster: Roster | None = None

    def join(self, roster: Roster) -> None:
        """Raises: InputError: the stage has no such student, or no source `teacher` where one is needed."""
        if self.student not in roster.students:
            raise InputError(f"attacker: no student '{self.student}'", fix=did_you_mean(self.student, roster.students))
        if self.against == "teacher" and "teacher" not in roster.sources:
            raise InputError("attacker: against = 'teacher', but no source is named 'teacher'")
        self._roster = roster

    def before(self, batch: Batch) -> Batch:
        """`images` attacked; `teacher_images` as they were."""
        if self._roster is None:
            return batch
        live = self._roster.students[self.student]
        plain = batch.images
        with evaluating(live.model):
            moved = perturb(
                lambda images: live.signals(batch.with_images(images)).logits,
                plain,
                self._objective(batch, self._roster),
                box=self.box,
                preprocessing=self._roster.dataset.preprocessing,
            )
        return replace(batch, images=moved, teacher_images=plain)

    def _objective(self, batch: Batch, roster: Roster) -> Objective:
        if self.against == "labels":
            return lambda logits: functional.cross_entropy(logits, batch.labels)
        with torch.no_grad():
            taught = roster.sources["teacher"].signals(batch).logits.float()
        return lambda logits: soft_target_kl(logits, taught, temperature=1.0)


def robust_accuracy(
    model: nn.Module, split: Split, preprocessing: Preprocessing, *, box: Box | None = None, seed: int = 0
) -> float:
    """Share of images that stay right under two attacks, cross-entropy and margin: an upper bound of the robustness.

    The model is in eval mode on its device. Raises: InputError: the split is empty.
    """
    if len(split) == 0:
        raise InputError("cannot attack an empty split")
    box, device, right = box or Box(steps=20), device_of(model), 0
    with evaluating(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for index in torch.split(torch.arange(len(split)), 256):
            images = preprocessing.normalise(split.images(index).to(device))
            right += int(_withstands(model, images, split.labels[index].to(device), box, preprocessing).sum())
    return right / len(split)


def _withstands(model: nn.Module, images: Tensor, labels: Tensor, box: Box, preprocessing: Preprocessing) -> Tensor:
    """Which images stay right: bool (batch,). An attack is spent only on images that withstood those before it."""

    def answer(x: Tensor) -> Tensor:
        return logits_of(model(x))

    def keep(rows: Tensor, seen: Tensor) -> Tensor:
        with torch.no_grad():
            return rows[answer(seen).argmax(1) == labels[rows]]

    climbs: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda logits, y: functional.cross_entropy(logits, y, reduction="sum"),
        margin,
    ]
    rows = keep(torch.arange(len(labels), device=labels.device), images)
    for climb in climbs:
        if len(rows):
            objective = partial(_against, climb, labels[rows])
            rows = keep(rows, perturb(answer, images[rows], objective, box=box, preprocessing=preprocessing))
    return torch.zeros_like(labels, dtype=torch.bool).index_fill(0, rows, value=True)


def _against(climb: Callable[[Tensor, Tensor], Tensor], labels: Tensor, logits: Tensor) -> Tensor:
    return climb(logits, labels)
