"""Multi-level logit distillation: match predictions, and how alike images and classes are predicted, at several T.

Source: Jin, Wang & Lin 2023, "Multi-Level Logit Distillation" (CVPR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import positive, same_classes
from edgekd.distill.losses.processes import gathered, gathered_with_gradient
from edgekd.distill.losses.soft_target import soft_target_kl
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss
from edgekd.errors import InputError

_STRONG_KL = (3.0, 4.0, 5.0)  # the temperatures at which the published code looks at the strong view


class MLKD(Loss):
    """Sum over T of T^2 KL(p || q) + ||Q Q' - P P'||^2 / batch + ||Q' Q - P' P||^2 / classes, summed over the views.

    P, Q (batch, classes) are softmax(logits / T) of teacher and student. views=2: the batch holds every image twice,
    first all weakly, then all strongly augmented.
    compat="official" computes what the published code does, which is not the paper: the weak view is multiplied by the
    share of images (classes) under the median confidence, about one half; the strong view has only its KL, and for T of
    2 and 6 that of the weak view in its place.
    Defaults: T 2 to 6, weight 0.9 beside a cross-entropy of 0.1, 480 epochs: the authors' code.
    Raises: ValueError: a temperature is not positive, or views is neither 1 nor 2. InputError: official with one view.
    `forward` raises InputError where the batch is not so: the loop makes one view of an image, two are for your own.
    """

    name: ClassVar[str] = "mlkd"
    published_weight: ClassVar[float] = 0.9

    def __init__(
        self,
        *,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        views: int = 1,
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        for temperature in temperatures:
            positive(temperature=temperature)
        if views not in (1, 2) or compat not in ("paper", "official") or not temperatures:
            raise ValueError(f"mlkd takes views 1 or 2 and compat paper or official, got {views} and '{compat}'")
        if compat == "official" and views != 2:
            raise InputError("mlkd: compat 'official' is about two views", fix="give views=2, or compat='paper'")
        self.temperatures, self.views, self.compat = tuple(temperatures), views, compat

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: the two have different classes, or the batch cannot be cut into the views."""
        same_classes(student, teacher)
        if len(student.logits) % self.views:
            raise InputError(f"mlkd: {len(student.logits)} images are not {self.views} views of each")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        if self.views == 2 and not torch.equal(*batch.index.chunk(2)):
            raise InputError("mlkd: the batch does not hold two views of each image", fix="give views=1")
        mine = [gathered_with_gradient(view) for view in student.logits.chunk(self.views)]
        theirs = [gathered(view) for view in teacher.logits.chunk(self.views)]
        if self.compat == "official":
            return self._official(mine, theirs)
        levels = [sum(_levels(q, p, t)) for q, p in zip(mine, theirs, strict=True) for t in self.temperatures]
        return torch.stack([torch.as_tensor(level) for level in levels]).sum()

    def _official(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        p = theirs[0].softmax(1)
        unsure, rare = (_share_below_median(c) for c in (p.amax(1), p.sum(0)))
        total = mine[0].new_zeros(())
        for t in self.temperatures:
            kl, images, classes = _levels(mine[0], theirs[0], t)
            view = 1 if t in _STRONG_KL else 0
            total = total + unsure * (kl + images) + rare * classes
            total = total + soft_target_kl(mine[view], theirs[view], temperature=t)
        return total


def _levels(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The instance, batch and class level at one temperature."""
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    images = (q @ q.T - p @ p.T).square().sum() / q.shape[0]
    classes = (q.T @ q - p.T @ p).square().sum() / q.shape[1]
    return soft_target_kl(student, teacher, temperature=temperature), images, classes


def _share_below_median(values: Tensor) -> Tensor:
    return (values <= values.quantile(0.5)).to(values.dtype).mean()
