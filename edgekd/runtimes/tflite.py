"""LiteRT (`.tflite`): ai-edge-litert's Interpreter with XNNPACK. NHWC or NCHW, float or integer input and output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, Layout, TensorSpec
from edgekd.errors import InputError
from edgekd.runtimes.macs import Shape, conv_macs, matmul_macs
from edgekd.runtimes.session import (
    ComputeKind,
    ComputeOp,
    Executed,
    FloatArray,
    Images,
    OpReport,
    arranged,
    every_output,
    first_line,
    first_output,
    image_input,
    output_positions,
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

_LAYOUT_ONLY = ("TRANSPOSE", "QUANTIZE", "DEQUANTIZE", "CAST", "PAD")


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> LiteRTSession:
    """Raises: InputError: not a TFLite model, or an unknown delegate."""
    delegate = options.get("delegate", "xnnpack")
    if delegate not in ("xnnpack", "none"):
        raise InputError(f"unknown delegate '{delegate}'", where="target 'tflite'", fix="use xnnpack or none")
    return LiteRTSession(artifact, _interpreter(artifact.path, threads=threads, xnnpack=delegate == "xnnpack"))


class LiteRTSession:
    """`invoke` runs the graph. An input that is in the arena already is not copied again: no operator writes over it.

    The runtime's own tools fill their input once too: the copy was 2% of mobilenet_v3_small.
    """

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, interpreter: Any) -> None:
        self._path, self._interpreter = artifact.path, interpreter
        image, results = interpreter.get_input_details()[0], interpreter.get_output_details()
        chosen = [results[k] for k in output_positions(artifact, [str(result["name"]) for result in results])]
        self._input, self._input_index = _input_spec(image, image_input(artifact)), image["index"]
        self._outputs = [_renamed(result, spec) for result, spec in zip(chosen, artifact.outputs, strict=True)]
        self._output_indices = [result["index"] for result in chosen]
        self._written: npt.NDArray[Any] | None = None

    def feed(self, images: Images) -> npt.NDArray[Any]:
        self._written = None  # the same array may hold another image now
        return arranged(images, self._input, self._path)

    def invoke(self, fed: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        if fed is not self._written:
            self._interpreter.set_tensor(self._input_index, fed)
            self._written = fed
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def read(self, raw: list[npt.NDArray[Any]]) -> FloatArray:
        return first_output(raw, self._outputs)

    def read_all(self, raw: list[npt.NDArray[Any]]) -> dict[str, FloatArray]:
        return every_output(raw, self._outputs)

    def close(self) -> None:
        self._interpreter = self._written = None


def _input_spec(details: Mapping[str, Any], declared: TensorSpec) -> TensorSpec:
    """The file's own dtype and grid; pixels are fed as they are, whatever grid the file says they stand for."""
    spec = tensor_spec(details, declared.layout)
    if declared.holds == "normalised":
        return spec
    return spec.model_copy(update={"holds": "pixels", "scale": None, "zero_point": None})


def _renamed(details: Mapping[str, Any], declared: TensorSpec) -> TensorSpec:
    return tensor_spec(details, declared.layout).model_copy(update={"name": declared.name})


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

    A compute operator is int8 when its input, its weights and its output all are. detail: `layout_ops`, the operators
    that only move or convert data; `delegated_ops`, how many XNNPACK takes on this CPU, and `undelegated`, the others.
    """
    interpreter = _interpreter(artifact.path, threads=1, xnnpack=False)
    operations = interpreter._get_ops_details()  # the only access to operators that the Python package has
    tensors = {details["index"]: details for details in interpreter.get_tensor_details()}
    compute = [_compute_op(op, tensors) for op in operations if op["op_name"] in _COMPUTE]
    counts = Counter(op["op_name"] for op in operations)
    left = _undelegated(artifact.path)
    return OpReport.of(
        counts,
        compute,
        source="LiteRT graph",
        fp16_compute=any(_float16_input(op) for op in operations if op["op_name"] in _COMPUTE),
        fp16_weights=any(np.dtype(details["dtype"]) == np.float16 for details in tensors.values()),
        tensor_dtypes=dict(Counter(np.dtype(details["dtype"]).name for details in tensors.values())),
        layout_ops={name: counts[name] for name in _LAYOUT_ONLY if counts[name]},
        delegated_ops=len(operations) - sum(left.values()),
        undelegated=left,
    )


def _undelegated(path: Path) -> dict[str, int]:
    """Operators that XNNPACK leaves to LiteRT's own kernels."""
    own, taken = _delegated(path)
    return dict(Counter(op["op_name"] for op in own if op["index"] not in taken))


def _delegated(path: Path) -> tuple[list[Mapping[str, Any]], set[int]]:
    """The file's operators, and the indices of those that XNNPACK takes: all that a delegate's outputs are made of."""
    operations = _interpreter(path, threads=1, xnnpack=True)._get_ops_details()
    own = [op for op in operations if op["op_name"] != "DELEGATE"]
    producers = {int(output): op for op in own for output in op["outputs"]}
    taken: set[int] = set()
    for delegate in operations:
        if delegate["op_name"] == "DELEGATE":
            taken |= _between(delegate, producers)
    return own, taken


def placed_ops(artifact: Artifact) -> list[tuple[str, str, int, bool]]:
    """(name, type, multiply-adds, whether XNNPACK takes it) of every operator of the file, in its order."""
    interpreter = _interpreter(artifact.path, threads=1, xnnpack=False)
    tensors = {details["index"]: details for details in interpreter.get_tensor_details()}
    _, taken = _delegated(artifact.path)
    return [
        (
            _name(op, str(tensors[int(op["outputs"][0])]["name"])),
            op["op_name"],
            _compute_op(op, tensors).macs if op["op_name"] in _COMPUTE else 0,
            op["index"] in taken,
        )
        for op in interpreter._get_ops_details()
    ]


def _between(delegate: Mapping[str, Any], producers: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Indices of the operators on the way from a delegate's inputs to its outputs."""
    seen: set[int] = set()
    known, open_ends = {int(index) for index in delegate["inputs"]}, [int(index) for index in delegate["outputs"]]
    while open_ends:
        index = open_ends.pop()
        if index not in known and index in producers:
            known.add(index)
            seen.add(producers[index]["index"])
            open_ends += [int(operand) for operand in producers[index]["inputs"]]
    return seen


def _compute_op(op: Mapping[str, Any], tensors: Mapping[int, Mapping[str, Any]]) -> ComputeOp:
    op_type = op["op_name"]
    types = [np.dtype(kind) for kind in (*_operands(op, op["operand_types"]), op["result_types"][0])]
    shapes = [tensors[int(index)]["shape"].tolist() for index in (*_operands(op, op["inputs"]), op["outputs"][0])]
    return ComputeOp(
        name=_name(op, str(tensors[int(op["outputs"][0])]["name"])),
        kind=_COMPUTE[op_type],
        op_type=op_type,
        int8=all(kind in (np.int8, np.uint8) for kind in types),
        macs=_macs(op_type, *shapes),
    )


def _name(op: Mapping[str, Any], tensor: str) -> str:
    """Converters name every tensor after the whole model; the operator's place in the graph tells them apart.

    >>> _name({"index": 7}, "Wrapper/Net/Conv2d_stem;Wrapper/Net;3")
    'Conv2d_stem#7'
    """
    return f"{tensor.split(';')[0].rsplit('/', 1)[-1]}#{op['index']}"


def _operands(op: Mapping[str, Any], values: Sequence[Any]) -> tuple[Any, Any]:
    """Data and weights; a transposed convolution has its output shape before them, and in the other order."""
    return (values[2], values[1]) if op["op_name"] == "TRANSPOSE_CONV" else (values[0], values[1])


def _macs(op_type: str, data: Shape, weight: Shape, output: Shape) -> int:
    """Weights are (out, kh, kw, in), those of a depthwise convolution (1, kh, kw, out).

    >>> _macs("DEPTHWISE_CONV_2D", (1, 8, 8, 16), (1, 3, 3, 16), (1, 8, 8, 16)) == 16 * 64 * 9
    True
    """
    if op_type == "TRANSPOSE_CONV":
        return math.prod(data) * math.prod(weight[:-1])
    if op_type == "DEPTHWISE_CONV_2D":
        return conv_macs(output, weight[:-1])
    if op_type == "FULLY_CONNECTED":
        return conv_macs(output, weight)
    return conv_macs(output, weight) if _COMPUTE[op_type] == "conv" else matmul_macs(output, data)


def _float16_input(op: Mapping[str, Any]) -> bool:
    return bool(np.dtype(_operands(op, op["operand_types"])[0]) == np.float16)
