"""Probabilistic knowledge transfer: who is how near to whom in a batch, as conditional probabilities.

Source: Passalis & Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer" (1803.10837),
with the cosine kernel.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edgekd.distill.losses.pairs import ComparedPairs


class PKT(ComparedPairs):
    """mean over i, j of P_ij log((P_ij + e) / (Q_ij + e)), P and Q the rows of (cosine + 1) / 2 of teacher and student
    over their sums, e = 1e-7.

    The mean over all batch^2 entries is the reference code's, to which its weight of 30000 belongs (mdistiller).
    """

    name: ClassVar[str] = "pkt"
    published_weight: ClassVar[float] = 30000.0
    view = "vector"
    between_images = True

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels) -> ()."""
        q, p = _nearness(mine), _nearness(theirs)
        return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def _nearness(f: Tensor) -> Tensor:
    f = f / (f.norm(dim=1, keepdim=True) + 1e-7)
    similarity = (f @ f.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
