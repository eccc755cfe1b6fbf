"""TensorRT artifacts on a host without the device: ONNX Runtime runs the ONNX that the kit or the engine is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import InputError
from edgekd.files import read_json
from edgekd.runtimes.macs import Shape
from edgekd.runtimes.onnxruntime import SOFTMAX_STEP_MIN, OnnxSession, has_fp16, load, onnx_macs
from edgekd.runtimes.session import ComputeKind, ComputeOp, Executed, OpReport, first_line

OPTIONS = ("optimise",)
STAND_IN_NOTE = "ONNX Runtime stands in; TensorRT ran only its parser/builder"
_BUILDER_FILES = {
    "evidence.json": ("built_with", "architecture", "layer_count", "int8_layers"),
    "op_report.json": ("checked_with", "supported", "summary"),
}
_COMPUTE: dict[str, ComputeKind] = {"Conv": "conv", "ConvTranspose": "conv", "Gemm": "linear", "MatMul": "linear"}
_LAYOUT_ONLY = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> StandInSession:
    """Raises: InputError: there is no ONNX beside an engine, or a kit without a loadable one."""
    model = onnx_behind(artifact)
    optimise = bool(options.get("optimise", True))
    loaded = load(
        model,
        threads=threads,
        optimise=optimise,
        on_codes=not (artifact.precision == "int8" and _softmax_overflows(model)),
    )
    return StandInSession(artifact, loaded, path=model)


class StandInSession(OnnxSession):
    """The ONNX in ONNX Runtime: it proves the graph's numerics, and nothing of TensorRT's kernels or speed."""

    executed: Executed = "stand-in"
    note = STAND_IN_NOTE


def _softmax_overflows(path: Path) -> bool:
    """Whether a softmax is rounded to steps that ONNX Runtime has no room for: TensorRT has."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(path).graph
    except Exception:  # loading it into a session says what is wrong
        return False
    made = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    steps = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in made}
    stored = [tensor for tensor in graph.initializer if tensor.name in steps]
    return any(numpy_helper.to_array(tensor).min() < SOFTMAX_STEP_MIN for tensor in stored)


def onnx_behind(artifact: Artifact) -> Path:
    """The ONNX that the device builds from: inside a kit, beside an engine, or the artifact itself.

    Raises: InputError: there is none.
    """
    path = artifact.path
    if path.suffix == ".onnx":
        return path
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise InputError("the kit has no model.onnx", where=path, fix="export it again")
        return path / "model.onnx"
    beside = path.with_name("model.onnx")
    if not beside.is_file():
        what = "a TensorRT engine runs only on the GPU it was built for, and no model.onnx lies beside it"
        raise InputError(what, where=path, fix="run it there, or export it again")
    return beside


def op_report(artifact: Artifact) -> OpReport:
    """From the ONNX: TensorRT takes precision from types and Q/DQ alone, so a compute operator is int8 when a
    DequantizeLinear feeds both its data and its weight. detail: what TensorRT's own parser or builder said of it.
    """
    import onnx

    path = onnx_behind(artifact)
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's DecodeError, or onnx's own
        raise InputError(f"not an ONNX model ({first_line(error)})", where=path) from error
    producers = {name: node for node in graph.node for name in node.output}
    shapes = _shapes(path)
    compute = [_compute_op(node, producers, shapes) for node in graph.node if node.op_type in _COMPUTE]
    return OpReport.of(
        Counter(node.op_type for node in graph.node),
        compute,
        source="Q/DQ of the ONNX",
        fp16_compute=has_fp16(graph),
        fp16_weights=has_fp16(graph),
        **_builder_said(path.parent),
    )


def _builder_said(folder: Path) -> dict[str, Any]:
    """The short facts of the exporter's `evidence.json` (engine) or `op_report.json` (kit), {} without either."""
    for name, keys in _BUILDER_FILES.items():
        if (folder / name).is_file():
            document = read_json(folder / name)
            return {key: document[key] for key in keys if key in document}
    return {}


def _shapes(path: Path) -> dict[str, Shape]:
    """Every tensor's shape by its name; 0 where a size is free."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _compute_op(node: Any, producers: Mapping[str, Any], shapes: Mapping[str, Shape]) -> ComputeOp:
    int8 = all(_dequantised(name, producers) for name in node.input[:2])
    operands = [shapes.get(name) for name in (*node.input[:2], node.output[0])]
    return ComputeOp(
        name=node.name or node.output[0],
        kind=_COMPUTE[node.op_type],
        op_type=node.op_type,
        int8=int8,
        macs=onnx_macs(node.op_type, *(shape for shape in operands if shape)) if all(operands) else 0,
    )


def _dequantised(name: str, producers: Mapping[str, Any]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in _LAYOUT_ONLY:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
