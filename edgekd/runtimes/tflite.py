"""LiteRT (`.tflite`): ai-edge-litert's Interpreter with XNNPACK. NHWC or NCHW, float or integer input and output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, Layout, TensorSpec
from edgekd.errors import InputError
from edgekd.runtimes.session import (
    ComputeKind,
    ComputeOp,
    Executed,
    FloatArray,
    OpReport,
    arranged,
    dequantised,
    first_line,
    image_input,
)

OPTIONS = ("delegate",)
_COMPUTE: dict[str, ComputeKind] = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "conv",
    "TRANSPOSE_CONV": "conv",
    "CONV_3D": "conv",
    "FULLY_CONNECTED": "linear",
    "BATCH_MATMUL": "linear",
}


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> LiteRTSession:
    """Raises: InputError: not a TFLite model, or an unknown delegate."""
    delegate = options.get("delegate", "xnnpack")
    if delegate not in ("xnnpack", "none"):
        raise InputError(f"unknown delegate '{delegate}'", where="target 'tflite'", fix="use xnnpack or none")
    return LiteRTSession(artifact, _interpreter(artifact.path, threads=threads, xnnpack=delegate == "xnnpack"))


class LiteRTSession:
    """`invoke` copies the input into the arena (a memcpy, as Android's own tool does per run) and runs the graph."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, interpreter: Any) -> None:
        self._path, self._interpreter = artifact.path, interpreter
        declared = image_input(artifact)
        self._input = tensor_spec(interpreter.get_input_details()[0], declared.layout)
        self._output = tensor_spec(interpreter.get_output_details()[0], "NC")
        self._input_index = interpreter.get_input_details()[0]["index"]
        self._output_index = interpreter.get_output_details()[0]["index"]

    def feed(self, images: FloatArray) -> npt.NDArray[Any]:
        return arranged(images, self._input, self._path)

    def invoke(self, fed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._interpreter.set_tensor(self._input_index, fed)
        self._interpreter.invoke()
        raw: npt.NDArray[Any] = self._interpreter.get_tensor(self._output_index)
        return raw

    def read(self, raw: npt.NDArray[Any]) -> FloatArray:
        return dequantised(raw, self._output)

    def close(self) -> None:
        self._interpreter = None


def _interpreter(path: Path, *, threads: int, xnnpack: bool) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot load it ({first_line(error)})", where=path) from error
    return interpreter


def tensor_spec(details: Mapping[str, Any], layout: Layout) -> TensorSpec:
    """An input or output as the file declares it; scale 0 means that the tensor is not quantised."""
    scale, zero_point = details["quantization"]
    integer = bool(scale) and np.dtype(details["dtype"]).kind in "iu"
    return TensorSpec(
        name=str(details["name"]),
        shape=tuple(int(size) for size in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        layout=layout,
        scale=float(scale) if integer else None,
        zero_point=int(zero_point) if integer else None,
    )


def file_tensors(path: Path) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Input and output details of a file. Raises: InputError: not a TFLite model."""
    interpreter = _interpreter(path, threads=1, xnnpack=False)
    return interpreter.get_input_details(), interpreter.get_output_details()


def op_report(artifact: Artifact) -> OpReport:
    """From the file's graph as LiteRT plans it without a delegate, because a delegate hides what it took.

    A compute operator is int8 when its input, its weights and its output all are.
    """
    interpreter = _interpreter(artifact.path, threads=1, xnnpack=False)
    operations = interpreter._get_ops_details()  # the only access to operators that the Python package has
    tensors = {details["index"]: details for details in interpreter.get_tensor_details()}
    compute = [_compute_op(op, tensors) for op in operations if op["op_name"] in _COMPUTE]
    return OpReport.of(
        Counter(op["op_name"] for op in operations),
        compute,
        source="LiteRT graph",
        fp16_compute=any(_float16_input(op) for op in operations if op["op_name"] in _COMPUTE),
        fp16_weights=any(np.dtype(details["dtype"]) == np.float16 for details in tensors.values()),
        tensor_dtypes=dict(Counter(np.dtype(details["dtype"]).name for details in tensors.values())),
    )


def _compute_op(op: Mapping[str, Any], tensors: Mapping[int, Mapping[str, Any]]) -> ComputeOp:
    types = [np.dtype(kind) for kind in (*op["operand_types"][:2], *op["result_types"][:1])]
    name = str(tensors[int(op["outputs"][0])]["name"]).split(";")[0]
    int8 = all(kind in (np.int8, np.uint8) for kind in types)
    return ComputeOp(name=name, kind=_COMPUTE[op["op_name"]], op_type=op["op_name"], int8=int8)


def _float16_input(op: Mapping[str, Any]) -> bool:
    return bool(np.dtype(op["operand_types"][0]) == np.float16)
