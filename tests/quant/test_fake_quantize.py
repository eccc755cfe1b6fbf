from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.quant.fake_quantize import GridFakeQuantize, activation_spec, weight_spec
from edgekd.targets.spec import QuantSpec, Scheme


def fake_quantise(spec: object) -> GridFakeQuantize:
    names = ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis")
    settings_of = {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}
    return spec.observer_or_fake_quant_ctr.with_args(**settings_of)()


def activations(scheme: Scheme = "affine", **settings_of: float) -> GridFakeQuantize:
    return fake_quantise(activation_spec(QuantSpec(scheme=scheme, **settings_of), training=True))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    scheme=st.sampled_from(["affine", "symmetric"]),
)
def test_a_value_in_range_moves_by_at_most_half_a_step(values: list[float], scheme: Scheme) -> None:
    quantiser, x = activations(scheme), torch.tensor([values])
    error = (quantiser(x) - x).abs().max()
    # An affine zero point is rounded too, so the range's two ends may be cut by half a step more.
    allowed = quantiser.scale * (1.0 if scheme == "affine" else 0.501)
    assert error <= allowed.item() + 1e-5


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), bits=st.sampled_from([7, 8]))
def test_a_weight_moves_by_at_most_half_its_channels_step(values: list[float], bits: int) -> None:
    quantiser = fake_quantise(weight_spec(QuantSpec(scheme="affine", weight_bits=bits), training=True))
    weight = torch.tensor(values).reshape(2, 2, 1, 1)
    steps = (quantiser(weight) - weight).abs().amax((1, 2, 3)) / quantiser.scale
    assert steps.max() <= 0.501


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_training_uses_the_grid_that_conversion_writes(scheme: Scheme) -> None:
    quantiser = activations(scheme)
    for seed in range(3):
        quantiser.fresh = True
        values = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)) + 0.7
        rounded = quantiser(values)
    scale, zero_point = (value.item() for value in quantiser.calculate_qparams())
    expected = torch.fake_quantize_per_tensor_affine(values, scale, int(zero_point), -128, 127)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0)


def test_a_symmetric_grid_has_zero_point_zero_and_contains_zero() -> None:
    quantiser = activations("symmetric")
    assert quantiser(torch.tensor([[3.0, 0.0]]))[0, 1] == 0
    assert quantiser.zero_point.item() == 0


def test_the_range_follows_the_data_with_the_specs_constant() -> None:
    quantiser = activations(observer_averaging_constant=0.25)
    for high in (4.0, 8.0):
        quantiser.fresh = True
        quantiser(torch.tensor([[0.0, high]]))
    assert quantiser.activation_post_process.max_val.item() == pytest.approx(5.0)


def test_operators_that_share_a_grid_join_their_ranges_instead_of_averaging_them() -> None:
    quantiser = activations()
    for _ in range(50):
        quantiser.fresh = True
        quantiser(torch.tensor([[0.0, 4.0]]))
        quantiser(torch.tensor([[0.0, 1.0]]))  # the pooled tensor
    assert quantiser.activation_post_process.max_val.item() == pytest.approx(4.0)


def test_the_gradient_passes_inside_the_range_and_stops_outside() -> None:
    quantiser = activations()
    quantiser(torch.tensor([[-1.0, 1.0]]))
    quantiser.observing = False
    x = torch.tensor([[0.3, 5.0, -5.0]], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_half_precision_is_rounded_on_the_float32_grid() -> None:
    quantiser = activations()
    x = torch.linspace(-1, 1, 64).reshape(1, -1)
    expected = quantiser(x.bfloat16().float())
    assert torch.equal(quantiser(x.bfloat16()), expected)
