"""ONNX files are counted from what they say; what cannot be counted is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import InputError
from edgekd.latency import cost_of_file
from edgekd.latency.predict import refuse_unknown


def onnx_file(path: Path, nodes: list[onnx.NodeProto], batch: int | str = 1, **weights: tuple[int, ...]) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 4, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], [out], stored)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]), path
    )
    return path


def test_convolution_activation_and_product_are_two_kernels(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "fc"], ["out"], transB=1),
    ]
    cost = cost_of_file(onnx_file(tmp_path / "m.onnx", nodes, w=(6, 4, 3, 3), fc=(10, 96)))
    conv, linear = cost.ops
    assert (conv.kind, conv.macs, conv.taps, conv.stride) == ("conv", 6 * 16 * 4 * 9, 9, 2)
    assert (linear.kind, linear.macs, linear.weight_elements) == ("linear", 960, 960)
    assert cost.parameters == 6 * 4 * 9 + 960


def test_an_activation_written_as_x_times_f_of_x_joins_its_convolution(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["out"]),
    ]
    (op,) = cost_of_file(onnx_file(tmp_path / "m.onnx", nodes, w=(8, 4, 1, 1))).ops
    assert (op.kind, op.write_elements, op.joined) == ("conv", 8 * 64, 1)


def test_a_dynamic_shape_is_refused(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", [helper.make_node("Relu", ["image"], ["out"])], batch="n")
    with pytest.raises(InputError, match=r"m\.onnx: tensor 'image' has no static shape; export with fixed input sizes"):
        cost_of_file(file)


def test_a_convolution_without_weights_is_refused(tmp_path: Path) -> None:
    out, image = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("out", "image"))
    graph = helper.make_graph([helper.make_node("Conv", ["image"], ["out"])], "g", [image], [out])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: no network that can be made sense of \(IndexError\)"):
        cost_of_file(tmp_path / "m.onnx")


def test_a_program_for_any_batch_is_refused(tmp_path: Path) -> None:
    module, image = torch.nn.Conv2d(3, 4, 3), torch.zeros(4, 3, 8, 8)
    batch = torch.export.Dim("batch", min=2, max=8)
    torch.export.save(torch.export.export(module, (image,), dynamic_shapes=({0: batch},)), tmp_path / "m.pt2")
    with pytest.raises(InputError, match=r"m\.pt2: tensor 'input' has no static shape; export with fixed input sizes"):
        cost_of_file(tmp_path / "m.pt2")


def test_an_unknown_operator_is_named_and_not_predicted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Warp", ["image"], ["out"], name="w1", domain="own")]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4, 8, 8])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [out]), opset_imports=[helper.make_opsetid("own", 1)]
    )
    onnx.save(model, tmp_path / "m.onnx")
    cost = cost_of_file(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="w1: unknown operator 'Warp': its cost cannot be predicted"):
        refuse_unknown(cost)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("m.onnx", b"nonsense", "not an ONNX model"),
        ("m.tflite", b"nonsense that is long enough", "no TFL3 mark"),
        ("m.tflite", b"\0\0\0\0TFL3" + bytes(64), "no network that can be made sense of"),
        ("m.pt2", b"nonsense", "not a torch.export program"),
        ("m.txt", b"", r"give a \.onnx, \.tflite or \.pt2 file"),
    ],
)
def test_a_file_that_is_no_network_is_refused(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match):
        cost_of_file(tmp_path / name)
