"""Rows of every process of a distributed run, for memory banks, batch-wide negatives and relations between images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) outside a distributed run."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, detached, in the order of the whole batch: (batch, ...) -> (world * batch, ...).

    A process holds every world-th sample of the batch (`batches.Share`).
    """
    rows = rows.detach()
    count = world()[1]
    if count == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(count)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def gathered_with_gradient(rows: Tensor) -> Tensor:
    """As `gathered`, with a gradient, for losses that compare the images of a batch with each other.

    Every process then has the loss of the whole batch, and the mean of the processes' gradients is that loss's.
    """
    if world()[1] == 1:
        return rows
    found: Tensor = _GatherWithGradient.apply(rows)
    return found


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, rows: Tensor) -> Tensor:
        return gathered(rows)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return mine(total)


def mine(rows: Tensor) -> Tensor:
    """This process's share of rows made for the whole batch."""
    rank, count = world()
    return rows[rank::count]
