"""Kullback-Leibler divergence of log-probabilities, where classes of probability 0 add nothing."""

from __future__ import annotations

from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, in nats: (..., classes) -> (...).

    >>> import torch
    >>> kl(torch.tensor([0.0, -torch.inf]), torch.tensor([0.25, 0.75]).log())  # ln 4
    tensor(1.3863)
    """
    p = log_p.exp()
    # 0 * (-inf - x) would be nan, and so would its gradient if it were masked only after; a nan in the inputs must stay
    # one, and p == 0 is false for it.
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """Shannon entropy over the last dimension, in nats: (..., classes) -> (...)."""
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)


def non_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits without each row's label: (batch, classes) -> (batch, classes - 1), without a wait for the device.

    >>> import torch
    >>> non_target(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])).tolist()
    [[1.0, 3.0]]
    """
    place = labels.new_ones(logits.shape[1] - 1).cumsum(0) - 1
    return logits.gather(1, place + (place >= labels.unsqueeze(1)).long())
