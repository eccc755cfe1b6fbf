"""Contrastive representation distillation with memory banks: the paper's estimator, cheap enough for every step.

Source: Tian et al. 2020, "Contrastive Representation Distillation" (1910.10699), and its reference code,
RepDistiller (crd/memory.py, crd/criterion.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch, seed_of
from edgekd.distill.losses.checks import positive, share
from edgekd.distill.losses.features import as_vector
from edgekd.distill.losses.processes import gathered, mine, world
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Context, Loss, Needs
from edgekd.errors import InputError


class CRDMemory(Loss):
    """-(log h(positive) + sum over negatives of log(1 - h)), both ways, the mean over the batch.

    h = e / (e + negatives / n), e = exp(a . b / temperature) / Z; a is the embedding of an image by one model, b what
    the other model's bank holds for an image, n the training images. Each bank holds the running mean (momentum) of the
    embeddings, to length 1. Z is the mean of e over the first batch times n, and is kept. Negatives are drawn with
    replacement among the images of other classes, as a function of seed and step.
    Defaults: dimensions 128, negatives 16384, temperature 0.07, momentum 0.5, weight 0.8: RepDistiller.
    Memory: 2 n dimensions floats (51 MB for n = 50 000), also in each checkpoint.
    Raises: ValueError: an argument out of its range. InputError: the training images are all of one class.
    """

    name: ClassVar[str] = "crd_memory"
    published_weight: ClassVar[float] = 0.8
    banks: Tensor  # (2, n, dimensions): the student's, the teacher's
    normalisers: Tensor  # (2,): Z of the student's and the teacher's embeddings, 0 before the first batch
    pending_index: Tensor
    pending_rows: Tensor
    by_class: Tensor
    first: Tensor
    members: Tensor

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        dimensions: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        positive(dimensions=dimensions, negatives=negatives, temperature=temperature)
        share(momentum=momentum)
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.dimensions, self.negatives, self.temperature, self.momentum = dimensions, negatives, temperature, momentum
        self.embeddings = nn.ModuleList()
        self._seed = 0

    def needs(self) -> Needs:
        """One tap each."""
        return Needs((self.student_tap,), (self.teacher_tap,))

    def prepare(self, context: Context) -> None:
        """Empty banks for the training images, and the images in the order of their classes."""
        images, self._seed = len(context.labels), context.seed
        members = context.labels.bincount()
        if int(members.max()) == images:
            raise InputError(
                "crd_memory: the training images are all of one class", fix="use crd without other_classes"
            )
        for name, tensor in {"by_class": context.labels.argsort(stable=True), "members": members}.items():
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("first", members.cumsum(0) - members, persistent=False)
        self.register_buffer("normalisers", torch.zeros(2))
        self.register_buffer("banks", torch.zeros(2, images, self.dimensions))

    def build(self, student: Signals, teacher: Signals) -> None:
        """Embeddings, and banks of random directions."""
        for feature in self._features(student, teacher):
            self.embeddings.append(nn.Linear(feature.shape[1], self.dimensions))
        bound = (3 / self.dimensions) ** 0.5
        self.banks.uniform_(-bound, bound)
        rows = len(student.logits) * world()[1]
        self.register_buffer("pending_index", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("pending_rows", self.banks[:, :1].repeat(1, rows, 1))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A checkpoint was made after a part of a batch, or after a batch that other processes shared."""
        for name in ("pending_index", "pending_rows"):
            stored = state.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.banks.device))
        super()._load_from_state_dict(state, prefix, *rest)

    def _features(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        return as_vector(student.taps[self.student_tap]), as_vector(teacher.taps[self.teacher_tap])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: features that `as_vector` takes -> ()."""
        features = zip(self.embeddings, self._features(student, teacher), strict=True)
        own, foreign = (functional.normalize(embed(feature)) for embed, feature in features)
        self._write_pending()
        index = torch.cat([batch.index.unsqueeze(1), self.draw(batch)], 1)
        found = torch.stack([self._similarity(own, 1, index), self._similarity(foreign, 0, index)])
        e = (found / self.temperature).exp()
        self._settle_normalisers(e.detach())
        self._remember(torch.stack([own, foreign]), batch.index)
        e = e / self.normalisers.view(2, 1, 1)
        noise = self.negatives / self.banks.shape[1]
        positives = ((e[..., 0] + (noise + 1e-7)) / e[..., 0]).log()
        others = ((e[..., 1:] + 1e-7) / noise).log1p()
        return (positives.sum() + others.sum()) / len(own)

    @torch.no_grad()
    def draw(self, batch: Batch) -> Tensor:
        """Indices of images of other classes than each image's own: int64 (batch, negatives)."""
        rows, device = len(batch.labels) * world()[1], batch.labels.device
        generator = torch.Generator(device).manual_seed(seed_of(self._seed, "negatives", batch.step, batch.part))
        chance = mine(torch.rand(rows, self.negatives, generator=generator, device=device))
        members, first = self.members[batch.labels].unsqueeze(1), self.first[batch.labels].unsqueeze(1)
        others = len(self.by_class) - members
        place = torch.minimum((chance * others).long(), others - 1)  # a place in the row without the own class
        return self.by_class[place + members * (place >= first)]

    def _similarity(self, v: Tensor, bank: int, index: Tensor) -> Tensor:
        """v_i . bank[index_ij]: (batch, dimensions), (batch, m) -> (batch, m)."""
        rows = self.banks[bank]
        # One product with the whole bank reads it once; gathering its rows first copies batch x m of them, 0.5 GB for
        # 64 x 16384. Only for a bank much longer than that does the product lose.
        if len(rows) <= 16 * index.shape[1]:
            return (v @ rows.T).gather(1, index)
        return (rows[index] @ v.unsqueeze(2)).squeeze(2)

    @torch.no_grad()
    def _settle_normalisers(self, e: Tensor) -> None:
        first = gathered(e.mean((1, 2)).unsqueeze(0)).mean(0) * self.banks.shape[1]
        self.normalisers.copy_(torch.where(self.normalisers > 0, self.normalisers, first))

    @torch.no_grad()
    def _remember(self, v: Tensor, index: Tensor) -> None:
        """New rows of the banks, of all processes' images; written by the next step, as this gradient reads the old."""
        index, v = gathered(index), gathered(v.transpose(0, 1)).transpose(0, 1)
        rows = self.momentum * self.banks[:, index] + (1 - self.momentum) * v
        self.pending_index, self.pending_rows = index, functional.normalize(rows, dim=2)

    @torch.no_grad()
    def _write_pending(self) -> None:
        self.banks[:, self.pending_index] = self.pending_rows
