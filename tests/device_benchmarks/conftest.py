"""A model small enough to time in a test, in a runtime that imports fast, and contenders made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.artifact import Artifact, TensorSpec
from edgekd.device_benchmarks import Contender, of_artifact
from edgekd.files import sha256_of


def _tiny_onnx(path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {
        "filters": rng.standard_normal((8, 1, 3, 3), dtype=np.float32),
        "linear": rng.standard_normal((8, 10), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "filters"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "linear"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [image], [logits], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="session")
def onnx_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One convolution and one linear layer as `.onnx`: 28x28x1 to 10 logits."""
    path = _tiny_onnx(tmp_path_factory.mktemp("bench") / "tiny.onnx")
    return Artifact(
        target="onnxruntime",
        precision="fp32",
        path=path,
        inputs=(TensorSpec(name="image", shape=(1, 1, 28, 28), dtype="float32", layout="NCHW"),),
        outputs=(TensorSpec(name="logits", shape=(1, 10), dtype="float32", layout="NC"),),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


@pytest.fixture
def onnx_contender(onnx_artifact: Artifact) -> Contender:
    """The tiny model in ONNX Runtime, as a contender named 'tiny'."""
    return of_artifact(onnx_artifact, name="tiny")
