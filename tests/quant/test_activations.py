"""Activations that a runtime computes inside the layer before them (`activation_in_convolution`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from settled_net import net_of
from torch import Tensor, fx, nn

from edgekd.export import ExportRequest, export_one
from edgekd.quant import convert, int8_coverage, prepare_qat, ptq, save_program
from edgekd.quant.graph import nodes_of
from edgekd.quant.quantizer import ACTIVATION, COMPUTE
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for
from edgekd.targets.spec import QuantSpec

FUSED = QuantSpec(scheme="affine", observer="minmax", split_gates=False, activation_in_convolution=True)


class Block(nn.Module):
    """Convolution, batch norm, activation; read_twice: a second reader of what the activation reads."""

    def __init__(self, activation: type[nn.Module], *, read_twice: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3))
        self.activation, self.read_twice = activation(), read_twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return y + self.activation(y) if self.read_twice else self.activation(y)


def unrounded(graph: fx.GraphModule) -> list[bool]:
    """Per activation, whether it reads a layer's own output (a batch norm is folded by now)."""
    return [node.all_input_nodes[0].target in COMPUTE for node in nodes_of(graph, *ACTIVATION)]


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.GELU])
def test_what_an_activation_alone_reads_is_not_rounded(activation: type[nn.Module], images) -> None:
    program = ptq(net_of(Block(activation)), list(images.split(1)), FUSED)
    assert unrounded(program.graph_module) == [True]
    quantised, total = int8_coverage(program)
    assert quantised == total


def test_a_second_reader_or_no_such_setting_and_it_is_rounded(images) -> None:
    twice = ptq(net_of(Block(nn.SiLU, read_twice=True)), list(images.split(1)), FUSED)
    plain = FUSED.model_copy(update={"activation_in_convolution": False})
    assert unrounded(twice.graph_module) == [False]
    assert unrounded(ptq(net_of(Block(nn.SiLU)), list(images.split(1)), plain).graph_module) == [False]


def test_training_leaves_the_same_tensors_unrounded(images) -> None:
    model = prepare_qat(net_of(Block(nn.SiLU), Block(nn.Hardswish)), images, FUSED)
    model(images).sum().backward()
    assert unrounded(convert(model).graph_module) == [True, True]


def test_a_float_activation_or_layer_is_not_fused(images) -> None:
    for update in ({"float_kinds": ("silu",)}, {"float_layers": ("1.convolution",)}):
        program = ptq(net_of(Block(nn.SiLU)), list(images.split(1)), FUSED.model_copy(update=update))
        assert unrounded(program.graph_module) == [False]


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.GELU])
def test_openvino_computes_what_its_specification_says(activation: type[nn.Module], images, tmp_path: Path) -> None:
    """Its plugin runs the activation in the convolution's kernel, on values that were never rounded."""
    spec = quant_spec_for("openvino").model_copy(update={"observer": "minmax"})
    assert spec.activation_in_convolution
    program = ptq(net_of(*(Block(activation) for _ in range(6))), list(images.split(1)), spec)
    path = save_program(program, tmp_path / "program.pt2")
    request = ExportRequest(program=path, target="openvino", precision="int8", out=tmp_path / "ov")
    artifact = export_one(request, log=tmp_path / "openvino.log")
    run = program.module()
    with torch.no_grad():
        expected = torch.cat([run(image[None]) for image in images])
    found = torch.from_numpy(logits(open_session(artifact, threads=1), images.numpy()))
    snr_db = 10 * torch.log10(expected.square().sum() / (expected - found).square().sum().clamp(min=1e-30))
    assert snr_db > 40
