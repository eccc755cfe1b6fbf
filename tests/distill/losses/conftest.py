"""Golden parity: a loss against an independent formula, in float64, value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgekd.distill import Loss, Signals
from edgekd.distill.batches import Batch


def batch_of(labels: list[int], *, progress: float = 0.5, step: int = 3, index: list[int] | None = None) -> Batch:
    """A batch whose images nobody reads."""
    y = torch.tensor(labels)
    place = torch.arange(len(y)) if index is None else torch.tensor(index)
    return Batch(torch.zeros(len(y), 1, 2, 2), y, place, step=step, progress=progress)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Float64 noise."""
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Parity:
    """What tests of losses share, handed out by the fixture of its name."""

    batch_of = staticmethod(batch_of)
    normal = staticmethod(normal)

    @staticmethod
    def signals(features: dict[str, Tensor] | Tensor, logits: Tensor | None = None) -> Signals:
        """Signals of taps alone, or of logits alone."""
        if isinstance(features, Tensor):
            return Signals(features)
        first = next(iter(features.values()))
        return Signals(torch.zeros(len(first), 3, dtype=first.dtype) if logits is None else logits, features)

    @staticmethod
    def built(loss: Loss, student: Signals, teacher: Signals) -> Loss:
        """The loss with its modules, in float64 and with random parameters (a zero bias would hide mistakes)."""
        loss.build(student.map(Tensor.float), teacher.map(Tensor.float))
        with torch.no_grad():
            for i, parameter in enumerate(loss.double().parameters()):
                parameter.add_(normal(*parameter.shape, seed=100 + i, scale=0.1))
        return loss

    @staticmethod
    def assert_agree(
        value_of: Callable[[], Tensor], expected_of: Callable[[], Tensor], leaves: list[Tensor], tolerance: float = 1e-6
    ) -> None:
        """Both give the same value and, for every leaf, the same gradient, which is not all zero."""
        for leaf in leaves:
            leaf.requires_grad_()
        value, expected = value_of(), expected_of()
        assert value.shape == ()
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=1e-9)
        found, wanted = torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves)
        for mine, theirs in zip(found, wanted, strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=1e-6 * float(theirs.abs().max()))


@pytest.fixture(scope="session")
def parity() -> type[Parity]:
    """The helpers."""
    return Parity
