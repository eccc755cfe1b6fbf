"""Adversarial matching: both players' losses against the formulas, written out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.distill import Discriminator, Pass, Signals
from edgekd.errors import InputError


def answer(net: nn.Module, x: Tensor) -> Tensor:
    """The three layers with slope 0.2 below zero, row by row: (batch, width) -> (batch,)."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        x = torch.stack([layer.weight @ row + layer.bias for row in x])
        x = torch.where(x > 0, x, 0.2 * x)
    return torch.stack([layers[-1].weight @ row + layers[-1].bias for row in x]).flatten()


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


def judge_for(width: int, parity: Any, *, gradient_penalty: float = 1.0) -> Discriminator:
    judge = Discriminator(hidden=5, gradient_penalty=gradient_penalty)
    judge.build(width)
    with torch.no_grad():
        for i, parameter in enumerate(judge.net.double().parameters()):
            parameter.copy_(parity.normal(*parameter.shape, seed=50 + i))
    return judge


@pytest.mark.parametrize("shape", [(4, 3), (1, 6), (3, 1)], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_discriminators_loss_is_goodfellows_with_r1(parity: Any, shape: tuple[int, int], gamma: float) -> None:
    judge = judge_for(shape[1], parity, gradient_penalty=gamma)
    student, teacher = parity.normal(*shape, seed=1), parity.normal(*shape, seed=2)

    def reference() -> Tensor:
        total = softplus(-answer(judge.net, teacher)).mean() + softplus(answer(judge.net, student)).mean()
        for row in teacher:  # R1: the squared slope of D at each of the teacher's vectors
            x = row.clone().requires_grad_()
            (slope,) = torch.autograd.grad(answer(judge.net, x.unsqueeze(0)).sum(), x, create_graph=True)
            total = total + gamma / 2 * (slope**2).sum() / len(teacher)
        return total

    weights = [p for p in judge.net.parameters() if p.ndim == 2]
    parity.assert_agree(lambda: judge.loss(student, teacher), reference, weights)


@pytest.mark.parametrize("shape", [(4, 3), (1, 6), (2, 1)], ids=str)
def test_the_student_is_asked_to_pass_for_the_teacher(parity: Any, shape: tuple[int, int]) -> None:
    s, t = parity.normal(*shape, seed=1), parity.normal(*shape, seed=2)
    judge = judge_for(shape[1], parity)
    batch = parity.batch_of([0] * shape[0])
    parity.assert_agree(
        lambda: Pass(judge)(Signals(s), Signals(t), batch), lambda: softplus(-answer(judge.net, s)).mean(), [s]
    )


def test_features_of_another_width_are_projected_and_the_discriminator_is_left_alone(parity: Any) -> None:
    s, t = parity.normal(3, 2, 2, 2, seed=1), parity.normal(3, 5, 2, 2, seed=2)
    mine, theirs = parity.signals({"s": s}), parity.signals({"t": t})
    judge = Discriminator(hidden=5)
    loss = parity.built(Pass(judge, student_tap="s", teacher_tap="t"), mine, theirs)
    judge.net.double()
    layer = loss.projector

    def reference() -> Tensor:
        pooled = torch.stack([layer.weight @ image.mean((1, 2)) + layer.bias for image in s])
        return softplus(-answer(judge.net, pooled)).mean()

    parity.assert_agree(lambda: loss(mine, theirs, parity.batch_of([0] * 3)), reference, [s, layer.weight])
    assert not any(p.requires_grad for p in judge.net.parameters())


def test_extreme_bfloat16_logits_overflow_nothing(parity: Any) -> None:
    s = torch.tensor([[1e18, -1e18, 0.0]], dtype=torch.bfloat16).float().requires_grad_()
    judge = Discriminator(hidden=4)
    judge.build(3)
    Pass(judge)(Signals(s), Signals(s.detach()), parity.batch_of([0])).backward()
    assert s.grad.isfinite().all()


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="one tap without the other; give both taps, or none for the logits"):
        Pass(Discriminator(), student_tap="a")
    with pytest.raises(InputError, match="adversarial: 10 classes, the teacher has 100"):
        Pass(Discriminator()).build(Signals(torch.zeros(2, 10)), Signals(torch.zeros(2, 100)))
    with pytest.raises(InputError, match="hidden 0"):
        Discriminator(hidden=0)
