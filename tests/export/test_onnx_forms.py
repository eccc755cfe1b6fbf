"""What ONNX Runtime is given in a form that it is fast at: the file's operators, and the program's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgekd.export import export_one
from edgekd.export.onnxruntime import lower
from edgekd.export.request import ExportRequest
from edgekd.quant import export_float, load_program, ptq, save_program
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for

SHAPE = (4, 8, 8)


class HalfErf(nn.Module):
    """Like a GELU, and none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2))


class ManyTokens(nn.Module):
    """Attention over 64 tokens that differ little: its weights are near 1/64, on a grid with steps of 1e-4."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2) / 200, -1)
        return (weights @ tokens).transpose(1, 2).reshape(x.shape)


def net_of(middle: nn.Module, channels: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), middle, nn.Conv2d(channels, 8, 1), nn.Flatten(), nn.Linear(512, 3)
    ).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))


def converted(net: nn.Module, precision: str, images: Tensor, folder: Path) -> tuple[Path, Path]:
    """(file, program)."""
    spec = quant_spec_for("onnxruntime")
    made = ptq(net, [images], spec) if precision == "int8" else export_float(net, SHAPE)
    folder.mkdir(exist_ok=True)
    program = save_program(made, folder / "program.pt2")
    request = ExportRequest(target="onnxruntime", precision=precision, program=program, out=folder / "out")
    request.out.mkdir(parents=True)
    return request.out / lower(request).path.name, program


def nodes_of(path: Path, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type in kinds]


def optimised(path: Path) -> Path:
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return path.with_name("optimised.onnx")


def same_codes(path: Path, program: Path, images: Tensor) -> bool:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    module = load_program(program).module(check_guards=False)
    name = session.get_inputs()[0].name
    return all(
        np.array_equal(session.run(None, {name: image[None].numpy()})[0], module(image[None]).detach().numpy())
        for image in images
    )


def test_a_gelu_in_float_is_one_operator_in_the_runtime(images, tmp_path) -> None:
    path, _ = converted(net_of(nn.GELU()), "fp32", images, tmp_path)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}, "the file itself is standard ONNX"
    kinds = [node.op_type for node in onnx.load(optimised(path)).graph.node]
    assert "Erf" not in kinds
    assert "Gelu" in kinds


def test_an_int8_gelu_is_one_operator_of_the_file_with_the_programs_codes(images, tmp_path) -> None:
    path, program = converted(net_of(nn.GELU()), "int8", images, tmp_path)
    (gelu,) = nodes_of(path, "Gelu", "Erf")
    assert gelu.domain == "com.microsoft"
    assert same_codes(path, program, images)


def test_what_is_only_like_a_gelu_stays_as_it_is(images, tmp_path) -> None:
    path, _ = converted(net_of(HalfErf()), "int8", images, tmp_path)
    assert [node.op_type for node in nodes_of(path, "Gelu", "Erf")] == ["Erf"]


def test_several_outputs_from_each_channel_become_a_depthwise_convolution(images, tmp_path) -> None:
    net = net_of(nn.Conv2d(8, 24, 3, padding=1, groups=8), channels=24)
    path, program = converted(net, "int8", images, tmp_path)
    groups = [a.i for node in nodes_of(path, "Conv") for a in node.attribute if a.name == "group"]
    assert groups == [1, 24, 1]
    assert "QLinearConv" in [node.op_type for node in onnx.load(optimised(path)).graph.node]
    assert not nodes_of(optimised(path), "Conv"), "all of them run in int8"
    assert same_codes(path, program, images)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_other_convolutions_keep_their_groups(images, tmp_path, groups: int) -> None:
    path, _ = converted(net_of(nn.Conv2d(8, 8, 3, padding=1, groups=groups)), "int8", images, tmp_path)
    assert not nodes_of(path, "Gather")
    assert next(a.i for a in nodes_of(path, "Conv")[1].attribute if a.name == "group") == groups


def kept_db(path: Path, program: Path, images: Tensor) -> float:
    """What a file keeps of its program in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    module = load_program(program).module(check_guards=False)
    name = session.get_inputs()[0].name
    with torch.no_grad():
        wanted = torch.cat([module(image[None]) for image in images]).numpy()
    found = np.concatenate([session.run(None, {name: image[None].numpy()})[0] for image in images])
    return snr_db(wanted, found)


def snr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / (np.square(wanted - found).sum() + 1e-30)))


def test_a_softmax_with_small_steps_is_not_computed_on_codes(images, tmp_path, monkeypatch) -> None:
    path, program = converted(net_of(ManyTokens()), "int8", images, tmp_path)
    assert not nodes_of(optimised(path), "QLinearSoftmax")
    assert kept_db(path, program, images) > 35
    monkeypatch.setattr("edgekd.runtimes.onnxruntime.SOFTMAX_STEP_MIN", 0.0)
    path, program = converted(net_of(ManyTokens()), "int8", images, tmp_path / "as-exported")
    assert nodes_of(optimised(path), "QLinearSoftmax")
    assert kept_db(path, program, images) < 20, "this ONNX Runtime does not overflow: the form can go"


def test_tensorrts_stand_in_has_room_for_them_too(images, tmp_path) -> None:
    made = ptq(net_of(ManyTokens()), [images], quant_spec_for("tensorrt"))
    program = save_program(made, tmp_path / "program.pt2")
    request = ExportRequest(target="tensorrt", precision="int8", program=program, out=tmp_path / "out")
    session = open_session(export_one(request, log=tmp_path / "log"), threads=1)
    with torch.no_grad():
        wanted = torch.cat([made.module(check_guards=False)(image[None]) for image in images]).numpy()
    found = logits(session, images.numpy())
    assert snr_db(wanted, found) > 35
