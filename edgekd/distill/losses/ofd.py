"""Overhaul of feature distillation: features before the ReLU, where what the teacher would cut off counts as a margin.

Source: Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation" (1904.01866).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.losses.checks import several_values
from edgekd.distill.losses.connectors import convolution_and_norm
from edgekd.distill.losses.pairs import ComparedPairs, Taps, taps_of
from edgekd.distill.sources import Signals
from edgekd.distill.taps import resolve
from edgekd.distill.terms import Context
from edgekd.errors import InputError


class OFD(ComparedPairs):
    """Sum over pairs of 1 / 2^(pairs - 1 - i) times the sum of (s - max(t, m))^2 but where s <= max(t, m) <= 0.

    s is the student's feature through a 1x1 convolution and batch norm, t the teacher's before its ReLU, m < 0 the mean
    of a channel's negative values as its batch norm tells it; sum over channels and positions, mean over the batch.
    teacher_norms: paths of the batch norms before those ReLUs; None: the last batch norm in each tapped module.
    Weight 0.001 (CIFAR-100), 0.0001 (ImageNet): mdistiller.
    Raises: InputError: the teacher has no batch norm there, or is no module.
    """

    name: ClassVar[str] = "ofd"
    published_weight: ClassVar[float] = 1e-3

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, teacher_norms: Taps | None = None) -> None:
        super().__init__(student_tap, teacher_tap)
        self.teacher_norms = taps_of(teacher_norms) if teacher_norms is not None else self.teacher_taps
        self.connectors = nn.ModuleList()

    def prepare(self, context: Context) -> None:
        """Margins from the teacher's batch norms."""
        for i, path in enumerate(self.teacher_norms):
            modules = [] if context.teacher is None else list(resolve(context.teacher, path).modules())
            norms = [module for module in modules if isinstance(module, nn.BatchNorm2d) and module.affine]
            if not norms:
                raise InputError(f"ofd: the teacher has no batch norm in '{path}'", fix="name it with teacher_norms")
            self.register_buffer(f"margin{i}", negative_mean(norms[-1].weight, norms[-1].bias).view(1, -1, 1, 1))

    def build(self, student: Signals, teacher: Signals) -> None:
        """A connector per pair. Raises: InputError: a batch norm is not of its tap's channels."""
        shapes = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self.pairs(student, teacher)]
        for i, (_, width) in enumerate(shapes):
            if self.get_buffer(f"margin{i}").shape[1] != width:
                where = f"batch norm '{self.teacher_norms[i]}' is not of the {width} channels of its tap"
                raise InputError(f"ofd: {where}", fix="name the one before the tapped ReLU with teacher_norms")
        for mine, _ in self.pairs(student, teacher):
            several_values(mine, self.name)
        self.connectors = nn.ModuleList([convolution_and_norm(*shape) for shape in shapes])

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        s, t = self.connectors[pair](mine), torch.maximum(theirs, self.get_buffer(f"margin{pair}"))
        apart: Tensor = (s - t).square().masked_fill((s <= t) & (t <= 0), 0.0)
        return 0.5 ** (len(self.student_taps) - 1 - pair) * apart.sum() / len(s)


@torch.no_grad()
def negative_mean(weight: Tensor, bias: Tensor) -> Tensor:
    """E[x | x < 0] of x ~ N(bias, weight^2), and -3 |weight| where x is negative less than once in a thousand.

    >>> negative_mean(torch.tensor([1.0]), torch.tensor([0.0])).item()  # -sqrt(2 / pi)
    -0.7978...
    """
    deviation = weight.detach().abs().double().clamp_min(1e-12)
    ratio = bias.detach().double() / deviation
    negative = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    mean = bias.double() - deviation * density / negative.clamp_min(1e-12)
    return torch.where(negative > 1e-3, mean, -3 * deviation).to(weight.dtype)
