"""Losses agree with their papers, stay finite in low precision and obey the laws of a divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from edgekd.distill import CrossEntropy, Hint, Signals, SoftTarget, soft_target_kl
from edgekd.distill.batches import Batch
from edgekd.errors import InputError

LOGITS = npst.arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


def batch_of(labels: list[int]) -> Batch:
    y = torch.tensor(labels)
    return Batch(torch.zeros(len(labels), 1, 4, 4), y, torch.arange(len(labels)), step=0, progress=0.0)


def reference_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The definition, sum by sum, in Python floats."""
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p = [math.exp(v / temperature - max(t) / temperature) for v in t]
        q = [math.exp(v / temperature - max(s) / temperature) for v in s]
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_target_kl_equals_its_definition_in_double_precision(temperature: float) -> None:
    student, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1)) * 3
    expected = reference_kl(student, teacher, temperature)
    assert soft_target_kl(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_soft_target_kl_gradient_is_temperature_times_the_difference_of_probabilities() -> None:
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    student.requires_grad_()
    soft_target_kl(student, teacher, temperature=3.0).backward()
    expected = 3.0 / 4 * ((student / 3).softmax(1) - (teacher / 3).softmax(1))
    torch.testing.assert_close(student.grad, expected.detach())


def test_soft_target_kl_agrees_with_hintons_high_temperature_limit() -> None:
    """Section 2.1: with zero-mean logits the gradient tends to (student - teacher) / classes."""
    student, teacher = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    student, teacher = student - student.mean(), teacher - teacher.mean()
    student.requires_grad_()
    soft_target_kl(student, teacher, temperature=1e4).backward()
    torch.testing.assert_close(student.grad, ((student - teacher) / 8).detach(), rtol=1e-3, atol=1e-4)


def test_soft_target_kl_survives_extreme_bfloat16_logits() -> None:
    student = torch.tensor([[3e38, -3e38, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    value = soft_target_kl(student, torch.tensor([[100.0, -3e38, 0.0]], dtype=torch.bfloat16), temperature=1.0)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_soft_target_kl_is_computed_in_float32_for_bfloat16_logits() -> None:
    student, teacher = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = soft_target_kl(student.double(), teacher.double(), temperature=4.0).item()
    assert soft_target_kl(student, teacher, temperature=4.0).item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(LOGITS, LOGITS, st.floats(0.5, 20))
def test_soft_target_kl_is_never_negative(student: np.ndarray, teacher: np.ndarray, temperature: float) -> None:
    value = soft_target_kl(
        torch.from_numpy(student).double(), torch.from_numpy(teacher).double(), temperature=temperature
    )
    assert value.item() >= -1e-9


@settings(max_examples=60, deadline=None)
@given(LOGITS, LOGITS, st.floats(-50, 50), st.floats(-50, 50))
def test_soft_target_kl_ignores_a_shift_of_either_models_logits(
    student: np.ndarray, teacher: np.ndarray, by_student: float, by_teacher: float
) -> None:
    s, t = torch.from_numpy(student).double(), torch.from_numpy(teacher).double()
    shifted = soft_target_kl(s + by_student, t + by_teacher, temperature=2.0).item()
    assert shifted == pytest.approx(soft_target_kl(s, t, temperature=2.0).item(), rel=1e-6, abs=1e-8)


def test_a_class_the_teacher_masks_with_minus_infinity_adds_nothing() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, -math.inf]])
    mass = math.exp(1) + math.exp(2)
    kept = soft_target_kl(student[:, :2], teacher[:, :2], temperature=1.0).item()
    lost = math.log((mass + math.exp(3)) / mass)
    assert soft_target_kl(student, teacher, temperature=1.0).item() == pytest.approx(kept + lost, rel=1e-5)


def test_a_nan_of_the_teacher_is_not_hidden() -> None:
    teacher = torch.tensor([[1.0, math.nan]])
    assert soft_target_kl(torch.zeros(1, 2), teacher, temperature=1.0).isnan()


def test_soft_target_kl_refuses_a_temperature_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        soft_target_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature=0)


def test_soft_target_kl_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        soft_target_kl(torch.zeros(4, 2), torch.zeros(1, 2), temperature=1)


def test_a_teacher_of_other_classes_is_refused_before_training() -> None:
    with pytest.raises(InputError, match="the student has 10 classes, the teacher 100"):
        SoftTarget().build(Signals(torch.zeros(2, 10)), Signals(torch.zeros(2, 100)))


def test_label_smoothing_moves_mass_to_the_other_classes() -> None:
    signals = Signals(torch.tensor([[10.0, 0.0]]))
    sharp = CrossEntropy()(signals, signals, batch_of([0])).item()
    smooth = CrossEntropy(label_smoothing=0.1)(signals, signals, batch_of([0])).item()
    assert smooth == pytest.approx(sharp + 0.05 * 10, rel=1e-3)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 8, 4, 4), (2, 16, 4, 4)),
        ((2, 8, 8, 8), (2, 16, 4, 4)),
        ((2, 8, 3, 3), (2, 16, 7, 7)),
        ((2, 8), (2, 16)),
        ((2, 5, 8), (2, 9, 16)),
        ((2, 8, 4, 4), (2, 9, 16)),
        ((2, 8, 4, 4), (2, 16)),
    ],
    ids=str,
)
def test_a_hint_fits_maps_vectors_and_tokens_of_any_sizes(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    hint = Hint("a", "b")
    mine = Signals(torch.zeros(2, 3), {"a": torch.randn(student)})
    theirs = Signals(torch.zeros(2, 3), {"b": torch.randn(teacher)})
    hint.build(mine, theirs)
    value = hint(mine, theirs, batch_of([0, 0]))
    value.backward()
    assert value.shape == ()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in hint.parameters())


def test_a_hint_is_the_mean_squared_error_of_a_one_by_one_convolution() -> None:
    hint = Hint("a", "b")
    a, b = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 5, 5)
    mine, theirs = Signals(torch.zeros(3, 2), {"a": a}), Signals(torch.zeros(3, 2), {"b": b})
    hint.build(mine, theirs)
    weight, bias = hint.projector.weight, hint.projector.bias
    expected = (torch.nn.functional.conv2d(a, weight[:, :, None, None], bias) - b).square().mean()
    torch.testing.assert_close(hint(mine, theirs, batch_of([0, 0, 0])), expected)


def test_a_hint_names_the_shape_it_cannot_use() -> None:
    signals = Signals(torch.zeros(2, 3), {"t": torch.zeros(2, 3, 4, 5, 6)})
    with pytest.raises(InputError, match=r"2, 3 or 4 dimensions, got \(2, 3, 4, 5, 6\)"):
        Hint("t", "t").build(signals, signals)
