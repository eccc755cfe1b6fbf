"""Contrastive representation distillation as InfoNCE: a student's feature must find the teacher's of the same image.

Source: Tian et al. 2020, "Contrastive Representation Distillation" (1910.10699); the InfoNCE form over a batch
and a queue is that of surveys and of He et al. 2020 (MoCo). The paper's own estimator is in `crd_memory.py`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, positive
from edgekd.distill.losses.features import as_vector
from edgekd.distill.losses.processes import gathered, world
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs


class CRD(Loss):
    """-log softmax over keys of (s_i . key / temperature) at the teacher's key of image i, the mean over the batch.

    s and keys are linear embeddings to length 1 of pooled features. Keys are those of the batch, of all processes, and
    the last `bank` ones before it. other_classes: keys of the image's own class are no negatives (as in the paper).
    Defaults: dimensions 128, temperature 0.07, weight 0.8: RepDistiller, which has them for the other estimator; bank
    4096 is ours. Memory: bank x dimensions floats, in the checkpoint.
    Raises: ValueError: an argument out of its range.
    """

    name: ClassVar[str] = "crd"
    published_weight: ClassVar[float] = 0.8
    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        dimensions: int = 128,
        temperature: float = 0.07,
        bank: int = 4096,
        other_classes: bool = True,
    ) -> None:
        super().__init__()
        positive(dimensions=dimensions, temperature=temperature)
        not_negative(bank=bank)
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.dimensions, self.temperature, self.other_classes = dimensions, temperature, other_classes
        self.register_buffer("bank", torch.zeros(bank, dimensions))
        self.register_buffer("bank_labels", torch.full((bank,), -1))  # -1: nothing there yet
        self.embed_student: nn.Module = nn.Identity()
        self.embed_teacher: nn.Module = nn.Identity()

    def needs(self) -> Needs:
        """One tap each."""
        return Needs((self.student_tap,), (self.teacher_tap,))

    def build(self, student: Signals, teacher: Signals) -> None:
        """The two embeddings."""
        mine, theirs = as_vector(student.taps[self.student_tap]), as_vector(teacher.taps[self.teacher_tap])
        self.embed_student = nn.Linear(mine.shape[1], self.dimensions)
        self.embed_teacher = nn.Linear(theirs.shape[1], self.dimensions)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: features that `as_vector` takes -> ()."""
        anchors = functional.normalize(self.embed_student(as_vector(student.taps[self.student_tap])))
        # Every process embeds the features of all: so the gradient to the embedding is that of one process.
        theirs, labels = gathered(as_vector(teacher.taps[self.teacher_tap])), gathered(batch.labels)
        fresh = functional.normalize(self.embed_teacher(theirs))
        keys, key_labels = torch.cat([fresh, self.bank]), torch.cat([labels, self.bank_labels])
        rank, count = world()
        own = torch.arange(len(anchors), device=anchors.device) * count + rank
        out = (key_labels == -1).expand(len(anchors), -1)
        if self.other_classes:
            out = out | (key_labels == batch.labels.unsqueeze(1))
        out = out.scatter(1, own.unsqueeze(1), False)
        similarity = (anchors @ keys.T / self.temperature).masked_fill(out, -torch.inf)
        # New tensors, not writes into the old: the gradient still needs those.
        self.bank, self.bank_labels = keys.detach()[: len(self.bank)], key_labels[: len(self.bank)]
        return functional.cross_entropy(similarity, own)
