"""Attention distillation between transformers: where each token looks.

Source: Sun et al. 2020, "MobileBERT" (2004.02984), per head; Wang et al. 2020, "MiniLM" (2002.10957). The mean over
heads where their numbers differ is common practice in ViT distillation [mem].
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgekd.distill.losses.divergence import kl
from edgekd.distill.losses.pairs import ComparedPairs
from edgekd.distill.sources import Signals
from edgekd.errors import InputError


class AttentionMaps(ComparedPairs):
    """Sum over pairs of KL(A_t || A_s), the mean over batch, heads and query tokens.

    The taps give attention after its softmax, (batch, heads, tokens, tokens), in both models of the same tokens; heads
    are averaged in both where their numbers differ. In timm: `blocks.11.attn.attn_drop@in`, with `fused_attn = False`
    on the block's attention, since a fused kernel never makes the map. Weight 1 (MiniLM).
    """

    name: ClassVar[str] = "attention_maps"
    view = "raw"

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: a tap is no attention map, or the tokens differ."""
        for mine, theirs in self.pairs(student, teacher):
            for who, a in (("student", mine), ("teacher", theirs)):
                if a.ndim != 4 or a.shape[2] != a.shape[3]:
                    raise InputError(
                        f"attention_maps: the {who}'s tap gives {tuple(a.shape)}",
                        fix="tap (batch, heads, tokens, tokens) after the softmax, with fused attention off",
                    )
            if mine.shape[2] != theirs.shape[2]:
                raise InputError(
                    f"attention_maps: the student has {mine.shape[2]} tokens, the teacher {theirs.shape[2]}",
                    fix="use models of the same patch size and class tokens, or attention_transfer on their tokens",
                )

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, heads, tokens, tokens) -> ()."""
        if mine.shape[1] != theirs.shape[1]:
            mine, theirs = mine.mean(1), theirs.mean(1)
        least = torch.finfo(mine.dtype).tiny  # a weight that underflowed to 0 would make the divergence infinite
        return kl(theirs.clamp_min(least).log(), mine.clamp_min(least).log()).mean()
