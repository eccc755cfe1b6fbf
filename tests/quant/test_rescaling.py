"""Rescalings as fractions with odd denominators: every runtime rounds them alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekd.export import ExportRequest, export_one
from edgekd.export.exact import in_float64
from edgekd.quant import conversion, convert, prepare_qat, ptq, save_program
from edgekd.quant.graph import nodes_of
from edgekd.quant.layers import WEIGHTED
from edgekd.quant.nodes import tensor_of
from edgekd.quant.rescaling import DEQUANTISE, QUANTISE, fraction, fractions
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine", observer="minmax", rounding="nearest", bias_correction=False)
FUSED = SPEC.model_copy(update={"residual_in_convolution": True, "activation_in_convolution": True})


class Squeeze(nn.Module):
    """A residual block with a gate per channel, as in RegNetY and EfficientNet."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.SiLU(),
        )  # fmt: skip
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.relu(x + self.project(y * self.gate(y)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Four such blocks with settled batch norms, then logits."""
    torch.manual_seed(0)
    blocks = [Squeeze() for _ in range(4)]
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    with torch.no_grad():
        for _ in range(30):
            net.train()(torch.randn(16, 3, 16, 16))
    return net.eval()


@pytest.fixture(scope="module")
def many() -> Tensor:
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def plain(net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.export.ExportedProgram:
    """The program with the scales that calibration found."""
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "round_alike", lambda graph: None)
        return ptq(net, list(images.split(8)), SPEC)


def float64(program: torch.export.ExportedProgram, images: Tensor) -> Tensor:
    exact = in_float64(program.module())
    with torch.no_grad():
        return torch.cat([exact(image[None].double()) for image in images]).float()


def in_runtime(program: torch.export.ExportedProgram, target: str, images: Tensor, folder: Path) -> Tensor:
    path = save_program(program, folder / "program.pt2")
    request = ExportRequest(program=path, target=target, precision="int8", out=folder / target)
    artifact = export_one(request, log=folder / "log")
    return torch.from_numpy(logits(open_session(artifact, threads=1), images.numpy()))


def same_images(one: Tensor, other: Tensor) -> int:
    """Images with the same codes at the outputs: their steps are far above 1e-4 of the largest logit."""
    return int(((one - other).abs().amax(1) < 1e-4 * one.abs().max()).sum())


@given(st.floats(2e-3, 4.0), st.sampled_from([1, 3, 21]))
def test_a_fraction_is_near_and_has_an_odd_denominator(value: float, factor: int) -> None:
    found = fraction(value, [2**-11, 2**-9], multiple_of=factor)
    if found is not None:
        numerator, denominator = found
        assert abs(numerator / denominator / value - 1) <= 2**-9
        assert denominator % 2 == 1
        assert denominator % factor == 0
    assert found is not None or factor > 1


@given(st.integers(-(2**23), 2**23), st.integers(1, 4000), st.integers(0, 4000))
def test_no_whole_number_times_such_a_fraction_is_near_a_tie(total: int, numerator: int, half: int) -> None:
    denominator = 2 * half + 1
    doubled = 2 * total * numerator % (2 * denominator)  # of the product, in parts of 1 / 2q of a code
    assert abs(doubled - denominator) >= 1


@pytest.mark.parametrize("target", ["tflite", "onnxruntime"])
def test_integer_runtimes_give_the_bits_of_the_program(target: str, net, many, images, tmp_path: Path) -> None:
    program = ptq(net, list(images.split(8)), SPEC)
    assert same_images(float64(program, many), in_runtime(program, target, many, tmp_path)) == len(many)


def test_with_the_scales_of_calibration_they_do_not(net, many, images, tmp_path: Path, monkeypatch) -> None:
    program = plain(net, images, monkeypatch)
    with torch.no_grad():
        run = program.module()
        float32 = torch.cat([run(image[None]) for image in many])
    assert same_images(float64(program, many), float32) < len(many)


@pytest.mark.parametrize("spec", [SPEC, FUSED], ids=["rounded", "fused"])
def test_float32_gives_the_bits_of_float64(spec: QuantSpec, net, many, images) -> None:
    """Also where a convolution computes the residual sum; a silu computed whole has no fraction to be had."""
    program = ptq(net, list(images.split(8)), spec)
    run = program.module()
    with torch.no_grad():
        float32 = torch.cat([run(image[None]) for image in many])
    assert same_images(float64(program, many), float32) >= len(many) - 3 * spec.activation_in_convolution


def test_each_layers_rescaling_is_such_a_fraction_in_calibrated_and_trained_programs(net, images, monkeypatch) -> None:
    assert share_of_fractions(ptq(net, list(images.split(8)), SPEC)) > 0.9  # the smallest factors have none
    assert share_of_fractions(convert(prepare_qat(net, images, SPEC))) > 0.9
    assert share_of_fractions(plain(net, images, monkeypatch)) < 0.3


def share_of_fractions(program: torch.export.ExportedProgram) -> float:
    """Of the channels of all layers, those whose factor is one as far as float32 can say."""
    graph = program.module()
    factors = [factor_of(graph, layer) for layer in nodes_of(graph, *WEIGHTED)]
    return float((fractions(np.concatenate(factors), [3e-7])[1] > 0).mean())


def factor_of(graph: torch.fx.GraphModule, layer: torch.fx.Node) -> np.ndarray:
    """Input scale times weight scale over output scale, per channel."""
    image, weight = layer.args[:2]
    reader = next(iter(layer.users))
    output = reader if reader.target is QUANTISE else next(iter(reader.users))
    scales = tensor_of(graph, weight.args[1]).double().numpy()
    return scales * image.args[1] / output.args[1]


def test_scales_move_by_a_hundredth_at_most_and_fixed_grids_stay(net, images, monkeypatch) -> None:
    before, after = plain(net, images, monkeypatch), ptq(net, list(images.split(8)), SPEC)
    scales = [[n.args[1] for n in nodes_of(p.module(), QUANTISE, DEQUANTISE)] for p in (before, after)]
    ratios = np.array(scales[1]) / np.array(scales[0])
    assert np.abs(ratios - 1).max() <= 2**-6 + 1e-6
    assert (ratios != 1).any()
    assert scales[1][:2] == scales[0][:2]  # the input's
    assert scales[1].count(1 / 256) == scales[0].count(1 / 256) > 0


def test_it_costs_no_accuracy(net, many, images, monkeypatch) -> None:
    with torch.no_grad():
        expected = net(many)
        both = (plain(net, images, monkeypatch), ptq(net, list(images.split(8)), SPEC))
    noise = [(float64(program, many) - expected).square().mean().item() for program in both]
    assert noise[1] < 1.12 * noise[0]  # 0.5 dB


def test_openvino_rounds_alike_where_no_function_is_computed_on_the_way(many, images, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain_blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(6)]
    net = nn.Sequential(nn.Conv2d(3, 16, 3), *plain_blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        for _ in range(30):
            net.train()(torch.randn(16, 3, 16, 16))
    program = ptq(net.eval(), list(images.split(8)), quant_spec_for("openvino"))
    found = in_runtime(program, "openvino", many, tmp_path)
    assert same_images(float64(program, many), found) >= len(many) - 2


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2)], ids=["global", "to an image"])
def test_a_global_mean_is_such_a_fraction_and_a_pool_to_an_image_keeps_its_grid(pool: nn.Module, images) -> None:
    """LiteRT's average pool cannot change grids."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(5)).eval()
    with torch.no_grad():
        net(images)
    graph = ptq(net, list(images.split(8)), SPEC).module()
    (mean,) = (n for n in graph.graph.nodes if "mean" in str(n.target) or "avg_pool" in str(n.target))
    before, after = mean.args[0].args[1], next(iter(mean.users)).args[1]
    found = fraction(before / 14**2 / after, [3e-7])
    if pool.output_size == 1:
        assert found is not None
        assert found[1] % 2 == 1
        assert before != after
    else:
        assert before == after
