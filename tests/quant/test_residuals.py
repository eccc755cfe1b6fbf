"""Residual additions that a runtime computes inside the convolution (`residual_in_convolution`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from settled_net import net_of
from torch import Tensor, fx, nn

from edgekd.export import ExportRequest, export_one
from edgekd.quant import convert, int8_coverage, prepare_qat, ptq, save_program
from edgekd.quant.graph import aten, nodes_of
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for
from edgekd.targets.spec import QuantSpec

FUSED = QuantSpec(scheme="affine", observer="minmax", residual_in_convolution=True)
CONVOLUTIONS = {aten.conv2d.default, aten.convolution.default}


class Block(nn.Module):
    """kind: what is added to the input: a convolution's output, one read twice, one of another shape, two of them."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.aside = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if self.kind == "read twice":
            return (x + y) * y
        if self.kind == "broadcast":
            return x + y.mean((2, 3), keepdim=True) + self.second(x)[:, :, :1, :1]
        return (self.aside(x) if self.kind == "two" else x) + y


def unrounded_operands(graph: fx.GraphModule) -> list[int]:
    """Per addition, how many operands come straight from a convolution (a batch norm is folded by now)."""
    return [
        sum(part.target in CONVOLUTIONS for part in node.all_input_nodes) for node in nodes_of(graph, aten.add.Tensor)
    ]


@pytest.mark.parametrize(
    ("kind", "expected"), [("plain", [1]), ("two", [1]), ("read twice", [0]), ("broadcast", [0, 0])]
)
def test_only_a_convolution_that_feeds_the_sum_alone_is_left_unrounded(kind: str, expected: list[int], images) -> None:
    program = ptq(net_of(Block(kind)), list(images.split(1)), FUSED)
    assert unrounded_operands(program.graph_module) == expected
    quantised, total = int8_coverage(program)
    assert quantised == total


def test_without_the_setting_both_operands_are_rounded(images) -> None:
    program = ptq(net_of(Block()), list(images.split(1)), FUSED.model_copy(update={"residual_in_convolution": False}))
    assert unrounded_operands(program.graph_module) == [0]


def test_training_leaves_the_same_tensors_unrounded(images) -> None:
    model = prepare_qat(net_of(Block(), Block("two")), images, FUSED)
    model(images)[0].sum().backward()
    assert unrounded_operands(convert(model).graph_module) == [1, 1]


def test_a_float_layer_is_no_int8_convolution_to_fuse_into(images) -> None:
    spec = FUSED.model_copy(update={"float_layers": ("1.second",)})
    assert unrounded_operands(ptq(net_of(Block()), list(images.split(1)), spec).graph_module) == [0]


def test_openvino_computes_what_its_specification_says(images, tmp_path: Path) -> None:
    """Its plugin leaves out the rounding of a convolution before a residual sum even where the file has it."""
    net = net_of(*(Block() for _ in range(6)))
    of_target = quant_spec_for("openvino").model_copy(update={"observer": "minmax"})
    fidelity = {
        fused: runtime_snr_db(net, of_target.model_copy(update={"residual_in_convolution": fused}), images, tmp_path)
        for fused in (True, False)
    }
    assert of_target.residual_in_convolution
    assert fidelity[True] > 40, fidelity
    assert fidelity[True] > fidelity[False] + 3, fidelity


def runtime_snr_db(net: nn.Module, spec: QuantSpec, images: Tensor, folder: Path) -> float:
    """How close OpenVINO's logits are to the int8 program's."""
    program = ptq(net, list(images.split(1)), spec)
    out = folder / str(spec.residual_in_convolution)
    path = save_program(program, out / "program.pt2")
    request = ExportRequest(program=path, target="openvino", precision="int8", out=out / "ov")
    artifact = export_one(request, log=out / "openvino.log")
    run = program.module()
    with torch.no_grad():
        expected = torch.cat([run(image[None]) for image in images])
    found = torch.from_numpy(logits(open_session(artifact, threads=1), images.numpy()))
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum().clamp(min=1e-30)))
