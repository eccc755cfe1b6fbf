"""A student's own predictions as its teacher: averaged over the epochs (temporal ensembling), or on the plain image.

Sources: Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning" (arXiv 1610.02242), section 2.2; Kim et
al. 2021, "Self-Knowledge Distillation with Progressive Refinement of Targets" (arXiv 2006.12000) for momentum 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.data.dataset import Dataset
from edgekd.distill.batches import Batch
from edgekd.distill.losses.processes import gathered
from edgekd.distill.players import Player
from edgekd.distill.sources import Live, Signals, evaluating
from edgekd.errors import InputError


class TemporalEnsemble(Player):
    """A source: the bias-corrected moving average of a student's past probabilities for each image.

    Z <- m Z + (1 - m) softmax(z), target Z / (1 - m^t) after t sightings, as log-probabilities; uniform before the
    first, so let the term's weight begin near 0. momentum: 0.6 in the paper; 0: the last sighting alone (PS-KD).
    Memory: images x classes float32. Raises: InputError: momentum is outside [0, 1).
    """

    def __init__(self, dataset: Dataset, *, student: str = "student", momentum: float = 0.6) -> None:
        if not 0 <= momentum < 1:
            raise InputError(f"temporal ensemble: momentum must be in [0, 1), got {momentum}")
        self.student, self.momentum = student, momentum
        self.classes, self.size = dataset.num_classes, len(dataset.train)
        self.sums = torch.zeros(self.size, self.classes)
        self.seen = torch.zeros(self.size, dtype=torch.int64)

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """Raises: InputError: a tap is asked for: only predictions are kept."""
        if taps:
            raise InputError(f"a temporal ensemble has no tap '{taps[0]}'", fix="use a method that reads logits only")
        self.sums = torch.zeros(self.size, self.classes, device=images.device)
        self.seen = torch.zeros(self.size, dtype=torch.int64, device=images.device)
        return Signals(images.new_zeros(len(images), self.classes))

    def signals(self, batch: Batch) -> Signals:
        """Log-probabilities (batch, classes)."""
        seen = self.seen[batch.index].unsqueeze(1)
        correction = 1 - self.momentum ** seen.float()
        uniform = torch.full_like(self.sums[batch.index], 1 / self.classes)
        targets = torch.where(seen > 0, self.sums[batch.index] / correction.clamp_min(1e-12), uniform)
        return Signals(targets.clamp_min(1e-12).log())

    def close(self) -> None:
        """Nothing of the caller's was changed."""

    def after(self, batch: Batch, spoken: Mapping[str, Signals], taught: Mapping[str, Signals]) -> None:
        """Take in what the student said; every process keeps all rows."""
        rows, probabilities = gathered(batch.index), gathered(spoken[self.student].logits.softmax(1))
        self.sums[rows] = self.momentum * self.sums[rows] + (1 - self.momentum) * probabilities
        self.seen[rows] += 1

    def state_dict(self) -> dict[str, Any]:
        """The averages and how often each image was seen."""
        return {"sums": self.sums, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.sums.copy_(state["sums"])
        self.seen.copy_(state["seen"])


class PlainView:
    """A source: what a student says of the image before augmentation, without gradient and dropout.

    Batch norms use the batch's statistics, as they do on the augmented images: with running ones, which lag behind a
    fast learner, the student was taught its own past (resnet8-8: 29% held-out accuracy in place of 47%).
    student: the very module that is among the stage's students. Augmentation consistency is soft targets from it.
    """

    def __init__(self, student: nn.Module, dataset: Dataset) -> None:
        self.dataset, self._live = dataset, Live(student, frozen=False)

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """The same as the student's own."""
        return self._live.bind(images, taps)

    def signals(self, batch: Batch) -> Signals:
        """Logits and taps of the plain images."""
        pixels = self.dataset.train.images(batch.index.cpu()).to(batch.images.device)
        plain = batch.with_images(self.dataset.preprocessing.normalise(pixels))
        with torch.no_grad(), evaluating(self._live.model), batch_statistics(self._live.model):
            return self._live.signals(plain)

    def close(self) -> None:
        """The student itself is closed by the loop."""


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norms normalise by the batch's own statistics and keep nothing of them.

    >>> norm = nn.BatchNorm1d(1).eval()
    >>> with batch_statistics(norm):
    ...     norm(torch.tensor([[1.0], [3.0]])).round(decimals=2).flatten().tolist()
    [-1.0, 1.0]
    >>> norm.running_mean.item(), norm.num_batches_tracked.item(), norm.training
    (0.0, 0, False)
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [module.training for module in norms]
    for module in norms:
        module.training, module.track_running_stats = True, False
    try:
        yield
    finally:
        for module, training in zip(norms, before, strict=True):
            module.training, module.track_running_stats = training, True
