"""Logit standardisation: any loss between logits, on z-scores instead, so that only the shape of a prediction counts.

Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation" (2403.01427).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.wrapping import Wrapping
from edgekd.distill.sources import Signals


def standardised(logits: Tensor) -> Tensor:
    """(z - mean) / (standard deviation + 1e-7) of each row; equal logits give zeros.

    >>> import torch
    >>> standardised(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=4).tolist()
    [[-1.0, 0.0, 1.0]]
    """
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = logits.std(-1, keepdim=True, correction=min(1, logits.shape[-1] - 1))
    return centred / (deviation + 1e-7)


class LogitStandardisation(Wrapping):
    """`inner` on standardised logits of both models.

    Composes with any loss that reads logits: soft_target_kl, dkd, ctkd, mlkd. The authors' code uses it with
    soft_target_kl at temperature 2, weight 9 beside a cross-entropy of 0.1.
    """

    name: ClassVar[str] = "logit_standardisation"
    published_weight: ClassVar[float] = 9.0

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes) -> ()."""
        mine, theirs = (replace(s, logits=standardised(s.logits)) for s in (student, teacher))
        value: Tensor = self.inner(mine, theirs, batch)
        return value
