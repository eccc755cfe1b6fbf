"""DIST: match the correlation of predictions, within an image and within a class, instead of the values.

Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher" (2205.10536).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative
from edgekd.distill.losses.logits import LogitLoss
from edgekd.distill.losses.processes import gathered, gathered_with_gradient
from edgekd.distill.sources import Signals


class DIST(LogitLoss):
    """T^2 (beta (1 - mean row correlation) + gamma (1 - mean column correlation)) of softmax(logits / T).

    Pearson's correlation over the classes of an image (rows) and over the images of a class (columns). A constant row
    or column (one class, one image) correlates 0 with anything, as in the reference code; it has no gradient.
    Defaults: beta 1, gamma 1, T 1: the authors' code; weight 2 (ImageNet): torchdistill and mmrazor.
    Raises: ValueError: an argument out of its range.
    """

    name: ClassVar[str] = "dist"
    published_weight: ClassVar[float] = 2.0

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)
        not_negative(beta=beta, gamma=gamma)
        self.beta, self.gamma = beta, gamma

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        logits = gathered_with_gradient(student.logits), gathered(teacher.logits)
        mine, theirs = (z.div(self.temperature).softmax(1) for z in logits)
        between_classes = 1 - correlation(mine, theirs).mean()
        within_class = 1 - correlation(mine.T, theirs.T).mean()
        return self.temperature**2 * (self.beta * between_classes + self.gamma * within_class)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation row by row: (n, m), (n, m) -> (n,); 0 where a row is constant.

    >>> import torch
    >>> correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[6.0, 4.0, 2.0]])).round(decimals=4).tolist()
    [-1.0]
    """
    return functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), eps=1e-8)
