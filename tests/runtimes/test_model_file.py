"""A bare file of a user's becomes an artifact by what the file itself says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import InputError
from edgekd.runtimes import logits, open_model_file, open_session


def write_onnx(path: Path, shape: list[int | str], *, classes: int = 10, outputs: int = 1) -> Path:
    """Flatten and Gemm on an input of a shape."""
    features = int(np.prod([size for size in shape[1:] if isinstance(size, int)]))
    weight = numpy_helper.from_array(np.ones((features, classes), np.float32), "weight")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["y"])]
    names = ["y", "flat"][:outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_onnx_file_tells_its_input_and_a_free_batch_is_one(tmp_path):
    artifact = open_model_file(write_onnx(tmp_path / "m.onnx", ["batch", 3, 8, 8]))
    assert (artifact.target, artifact.precision) == ("onnxruntime", "fp32")
    assert artifact.inputs[0].shape == (1, 3, 8, 8)
    assert artifact.inputs[0].layout == "NCHW"
    assert artifact.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert logits(open_session(artifact), np.ones((2, 3, 8, 8), np.float32)).tolist() == [[192.0] * 10] * 2


def test_channels_last_is_recognised_by_its_channels(tmp_path):
    artifact = open_model_file(write_onnx(tmp_path / "m.onnx", [1, 8, 8, 3]))
    assert artifact.inputs[0].layout == "NHWC"
    assert open_session(artifact).feed(np.zeros((1, 3, 8, 8), np.float32))["x"].shape == (1, 8, 8, 3)


def test_a_free_height_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"input 'x' is \[1, 3, \?, 8\], not an image of fixed size; export it with"):
        open_model_file(write_onnx(tmp_path / "m.onnx", [1, 3, "h", 8]))


def test_every_output_of_a_file_is_declared_and_read_by_its_name(tmp_path):
    artifact = open_model_file(write_onnx(tmp_path / "m.onnx", [1, 3, 8, 8], outputs=2))
    assert [(spec.name, spec.layout) for spec in artifact.outputs] == [("y", "NC"), ("flat", "NC")]
    session = open_session(artifact)
    raw = session.invoke(session.feed(np.ones((1, 3, 8, 8), np.float32)))
    assert {name: values.shape for name, values in session.read_all(raw).items()} == {"y": (1, 10), "flat": (1, 192)}
    assert np.array_equal(session.read(raw), session.read_all(raw)["y"])


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        (".onnx", "ONNX Runtime cannot load it"),
        (".pt2", "not a torch.export program"),
        (".xml", "not an OpenVINO IR"),
        pytest.param(".tflite", "LiteRT cannot load it", marks=pytest.mark.runtime),
    ],
)
def test_a_corrupt_file_is_named_with_the_reason(tmp_path, suffix, said):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match=rf"broken\{suffix}: {said}"):
        open_model_file(path)


@pytest.mark.runtime
def test_a_folder_that_only_looks_like_a_core_ml_package_is_named(tmp_path):
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(InputError, match=r"empty\.mlpackage: not a Core ML package"):
        open_model_file(tmp_path / "empty.mlpackage")


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"unknown kind of model '\.h5'; known: \.tflite, \.onnx"):
        open_model_file(tmp_path / "model.h5")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx: no such model"):
        open_model_file(tmp_path / "none.onnx")


def test_a_program_file_is_opened_by_what_its_graph_says(programs):
    artifact = open_model_file(programs / "affine.pt2")
    assert (artifact.target, artifact.precision) == ("null", "int8")
    assert artifact.inputs[0].shape == (1, 1, 28, 28)
    assert open_model_file(programs / "float.pt2").precision == "fp32"
