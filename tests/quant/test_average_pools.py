"""Average pools over an even number of pixels as convolutions: what every runtime rounds alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.export import ExportRequest, export_one
from edgekd.export.exact import in_float64
from edgekd.quant import convert, int8_coverage, prepare_qat, ptq, save_program
from edgekd.quant.average_pools import pools_to_convolutions
from edgekd.quant.graph import trace
from edgekd.quant.nodes import aten, nodes_of
from edgekd.runtimes import logits, open_session
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine", observer="minmax", rounding="nearest", bias_correction=False)


class Shortcut(nn.Module):
    """A residual block that halves the image, averaging before the shortcut's convolution: ResNet-D's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.down(x))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Shortcut(), Shortcut(), nn.Conv2d(8, 5, 4), nn.Flatten())
    with torch.no_grad():
        for _ in range(20):
            net.train()(torch.randn(16, 3, 16, 16))
    return net.eval()


def pools_of(program: torch.export.ExportedProgram) -> int:
    return len(nodes_of(program.graph_module, aten.avg_pool2d.default))


def in_float64_too(program: torch.export.ExportedProgram, images: Tensor) -> bool:
    """Whether float32 gives the codes of float64 for every image."""
    run, exact = program.module(), in_float64(program.module())
    with torch.no_grad():
        found = torch.cat([run(image[None]) for image in images])
        wanted = torch.cat([exact(image[None].double()) for image in images]).float()
    return bool(((found - wanted).abs().max() < 1e-4 * wanted.abs().max()).item())


def test_calibrated_and_trained_programs_have_none_and_the_same_bits_in_float32_and_float64(net, images) -> None:
    for program in (ptq(net, list(images.split(8)), SPEC), convert(prepare_qat(net, images, SPEC))):
        assert pools_of(program) == 0
        assert in_float64_too(program, images)
        quantised, total = int8_coverage(program)
        assert quantised == total == 8  # six convolutions and two pools


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["tflite", "onnxruntime"])
def test_a_runtime_gives_the_bits_of_the_program(target: str, net, images, tmp_path: Path) -> None:
    program = ptq(net, list(images.split(8)), SPEC)
    path = save_program(program, tmp_path / "program.pt2")
    request = ExportRequest(program=path, target=target, precision="int8", out=tmp_path / target)
    artifact = export_one(request, log=tmp_path / "log")
    found = torch.from_numpy(logits(open_session(artifact, threads=1), images.numpy()))
    with torch.no_grad():
        wanted = torch.cat([program.module()(image[None]) for image in images])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "becomes"),
    [
        (nn.AvgPool2d(2), "convolution"),
        (nn.AvgPool2d((2, 1)), "convolution"),
        (nn.AvgPool2d(4, 2, 1), "convolution"),
        (nn.AvgPool2d(4, 2, 1, count_include_pad=False), "pool"),
        (nn.AvgPool2d(4, 3, ceil_mode=True), "pool"),
        (nn.AvgPool2d(2, divisor_override=3), "pool"),
        (nn.AvgPool2d(3, 1, 1), "pool"),  # of nine codes no sum lies halfway between two
        (nn.AvgPool2d(6), "pool"),
        (nn.AvgPool2d(8), "global"),
        (nn.AvgPool2d(8, divisor_override=7), "pool"),
    ],
)
def test_a_pool_becomes_what_computes_the_same(pool: nn.Module, becomes: str) -> None:
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(pool, images, dynamic_batch=True)
    pools_to_convolutions(graph)
    kinds = {
        "convolution": aten.conv2d.default,
        "pool": aten.avg_pool2d.default,
        "global": aten.adaptive_avg_pool2d.default,
    }
    assert [name for name, kind in kinds.items() if nodes_of(graph, kind)] == [becomes]
    torch.testing.assert_close(graph(images), pool(images))
