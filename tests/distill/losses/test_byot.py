"""Be-your-own-teacher against its sum, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekd.distill.losses import make_loss
from edgekd.errors import InputError


def test_byot_is_the_sum_over_shallow_heads(parity: Any) -> None:
    a, b, z = parity.normal(4, 5, 3, 3), parity.normal(4, 6, seed=1), parity.normal(4, 3, seed=2)
    student = parity.signals({"a": a, "b": b}, z)
    loss = parity.built(make_loss("byot", student_tap=["a", "b"], temperature=2.0), student, student)
    labels = torch.tensor([0, 2, 1, 1])

    def expected() -> torch.Tensor:
        pooled = a.sum((2, 3)) / 9
        logits = pooled @ loss.heads[0].weight.T + loss.heads[0].bias
        hard = -logits.log_softmax(1)[torch.arange(4), labels].sum() / 4
        p, q = (z.detach() / 2).softmax(1), (logits / 2).softmax(1)
        soft = 4 * (p * (p / q).log()).sum() / 4
        near = (pooled @ loss.projectors[0].weight.T + loss.projectors[0].bias - b).square().sum() / 24
        return 0.7 * hard + 0.3 * soft + 0.03 * near

    parity.assert_agree(lambda: loss(student, student, parity.batch_of(labels.tolist())), expected, [a])


def test_byot_needs_a_shallow_and_a_deep_tap() -> None:
    with pytest.raises(InputError, match="byot got one tap; give one or more shallow layers"):
        make_loss("byot", student_tap="a")
