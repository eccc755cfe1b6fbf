"""On-the-fly native ensemble: extra branches on a shared layer, and a gate that makes a teacher of all of them.

Source: Lan, Zhu & Gong 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (1806.04606), equations 3 to 7.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import positive, several_images
from edgekd.distill.losses.features import as_map
from edgekd.distill.losses.soft_target import soft_target_kl
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError


class ONE(Loss):
    """CE of each extra branch and of the ensemble, and T^2 KL(ensemble || branch) summed over all branches.

    The ensemble's logits are sum_i g_i z_i; branch 0 is the student itself, g = softmax of a gate (linear, batch norm,
    ReLU) on the pooled shared feature. The student's own cross-entropy is a term beside this one; give this one no
    source. The ensemble is a target without gradient. Branches are a 3x3 convolution, batch norm, ReLU and a linear
    head here (ours: the paper repeats the net's last stage); they and the gate are dropped at export.
    Defaults: 3 branches, temperature 3: the paper.
    Raises: InputError: fewer than two branches. ValueError: temperature is not positive.
    """

    name: ClassVar[str] = "one"

    def __init__(self, student_tap: str, *, branches: int = 3, temperature: float = 3.0) -> None:
        super().__init__()
        positive(temperature=temperature)
        if branches < 2:
            raise InputError(f"one got {branches} branches", fix="give 2 or more; the student is the first")
        self.student_tap, self.count, self.temperature = student_tap, branches, temperature
        self.branches, self.gate = nn.ModuleList(), nn.Sequential()

    def needs(self) -> Needs:
        """The shared layer."""
        return Needs((self.student_tap,))

    def build(self, student: Signals, teacher: Signals) -> None:
        """Branches and gate on the shared layer's channels."""
        several_images(student, self.name)
        width = as_map(student.taps[self.student_tap], f"student tap '{self.student_tap}'").shape[1]
        classes = student.logits.shape[1]
        self.branches = nn.ModuleList([_branch(width, classes) for _ in range(self.count - 1)])
        gate = nn.Linear(width, self.count)
        self.gate = nn.Sequential(gate, nn.BatchNorm1d(self.count), nn.ReLU(), nn.Softmax(1))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes), the shared feature -> ()."""
        shared = as_map(student.taps[self.student_tap])
        logits = torch.stack([student.logits, *(branch(shared) for branch in self.branches)])
        ensemble = (self.gate(shared.mean((2, 3))).T.unsqueeze(2) * logits).sum(0)
        truth = batch.labels if batch.targets is None else batch.targets
        hard = [functional.cross_entropy(said, truth) for said in (*logits[1:], ensemble)]
        target = ensemble.detach()
        soft = [soft_target_kl(said, target, temperature=self.temperature) for said in logits]
        return torch.stack([*hard, *soft]).sum()


def _branch(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
