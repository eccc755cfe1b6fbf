"""An int8 program in float64: the same codes, no rounding of float32, every kind of convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekd.export.check_reference import folded
from edgekd.export.exact import _convolve, in_float64
from edgekd.quant import export_float, ptq
from edgekd.targets.spec import QuantSpec

SHAPE = (4, 12, 12)


class Net(nn.Module):
    """A depthwise, a grouped and a plain convolution, a gate, and a tensor made on the way in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.plain = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.grouped(self.depthwise(image).relu()))
        x = self.plain(x) + torch.full((1, 8, 1, 1), 0.1, dtype=torch.float32)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(images: torch.Tensor) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return ptq(Net().eval(), [images], QuantSpec(scheme="affine"))


def test_it_is_the_same_program_but_for_float32s_roundings(program, images):
    exact = in_float64(folded(program))
    assert exact is not None
    with torch.inference_mode():
        plain = torch.cat([folded(program)(images[i : i + 1]) for i in range(len(images))])
        found = torch.cat([exact(images[i : i + 1].double()) for i in range(len(images))])
    assert found.dtype == torch.float64
    scale = plain.abs().max().item()
    # Few values lie within float32's error of a rounding's edge in so small a net: nearly every image is equal.
    equal = ((plain - found).abs().amax(1) < 1e-5 * scale).double().mean().item()
    assert equal >= 0.9
    assert torch.dist(plain.double(), found) < 0.02 * plain.norm()


def test_the_program_keeps_its_own_weights(images):
    spec = QuantSpec(scheme="affine", float_layers=("plain", "head"))
    program = ptq(Net().eval(), [images], spec)
    before = folded(program)(images[:1])
    exact = in_float64(folded(program))
    assert exact is not None
    assert torch.equal(folded(program)(images[:1]), before)
    torch.testing.assert_close(exact(images[:1].double()).float(), before, rtol=0.05, atol=0.05)


def test_nothing_in_it_is_rounded_to_float32(program):
    exact = in_float64(folded(program))
    assert exact is not None
    image = torch.randn(1, *SHAPE, dtype=torch.float64)
    kinds = set()

    class Watched(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            kinds.add(value.dtype if isinstance(value, torch.Tensor) and value.is_floating_point() else None)
            return value

    Watched(exact).run(image)
    assert kinds - {None} == {torch.float64}


def test_a_float_program_stays_what_it_is():
    assert in_float64(folded(export_float(Net().eval(), SHAPE))) is None


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "kernel"),
    [((1, 1), (1, 1), (1, 1), (3, 3)), ((2, 1), (0, 2), (1, 2), (5, 3)), ((2,), (1,), (2,), (3, 3))],
)
def test_groups_in_one_product_are_torchs_convolution(groups, stride, padding, dilation, kernel):
    x = torch.randn(2, 4, 13, 11, dtype=torch.float64)
    weight = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64)
    bias = torch.randn(8, dtype=torch.float64)
    want = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    got = _convolve(x, weight, bias, stride, padding, dilation, groups)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-12, atol=1e-12)
