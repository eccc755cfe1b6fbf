"""Neuron selectivity transfer: the channels of a layer, as samples of a distribution over positions, match in MMD.

Source: Huang & Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (1707.01219),
with the polynomial kernel of degree 2.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.losses.pairs import ComparedPairs


class NST(ComparedPairs):
    """Sum over pairs of mean k(t, t) + mean k(s, s) - 2 mean k(s, t), k(a, b) = (a . b)^2 over channels of length 1.

    Means are over pairs of channels and over the batch. Weight 50: mdistiller.
    """

    name: ClassVar[str] = "nst"
    published_weight: ClassVar[float] = 50.0

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        s, t = (functional.normalize(f.flatten(2), dim=2) for f in (mine, theirs))
        return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().mean()
