"""Similarity-preserving distillation: images that excite the teacher alike excite the student alike.

Source: Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation" (1907.09682).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from edgekd.distill.losses.pairs import ComparedPairs


class SimilarityPreserving(ComparedPairs):
    """Sum over pairs of ||N(F_s F_s') - N(F_t F_t')||^2 / batch^2, F the flattened features, N rows to length 1.

    Sizes and widths may differ. Weight 3000 on the last feature map: RepDistiller and mdistiller.
    """

    name: ClassVar[str] = "similarity_preserving"
    published_weight: ClassVar[float] = 3000.0
    view = "raw"
    between_images = True

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, ...) -> ()."""
        a, b = (functional.normalize(f.flatten(1) @ f.flatten(1).T) for f in (mine, theirs))
        return (a - b).square().mean()
