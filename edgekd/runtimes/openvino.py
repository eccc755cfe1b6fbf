"""OpenVINO (IR `.xml` + `.bin`) on the CPU plugin, and the execution graph with the precision each layer runs at."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import InputError, did_you_mean
from edgekd.runtimes.macs import conv_macs, matmul_macs
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

OPTIONS = ("inference_precision",)
_PRECISIONS = ("f32", "bf16", "f16", "default")
_COMPUTE: dict[str, ComputeKind] = {
    "Convolution": "conv",
    "GroupConvolution": "conv",
    "Deconvolution": "conv",
    "FullyConnected": "linear",
    "MatMul": "linear",
}
_INT8 = ("u8", "i8")
_FUSED_PRODUCTS = ("MatMul", "ScaledDotProductAttention")
_FACTS = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> OpenVINOSession:
    """Raises: InputError: not an IR that OpenVINO can compile, or an unknown precision."""
    precision = str(options.get("inference_precision", "f32"))
    if precision not in _PRECISIONS:
        fix = did_you_mean(precision, _PRECISIONS)
        raise InputError(f"unknown inference_precision '{precision}'", where="target 'openvino'", fix=fix)
    return OpenVINOSession(artifact, *compile_model(artifact.path, threads=threads, precision=precision))


class OpenVINOSession:
    """`invoke` is one synchronous infer request with shared input and output memory. compile_ms: a part of loading.

    An input that the request has already is not given again, as in benchmark_app: that was 7% of mobilenet_v3_small.
    Nor does OpenVINO's Python wrapper look through what is given and taken then: another 2%, and nobody's deployment.
    """

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, compiled: Any, compile_ms: float) -> None:
        self._path, self._compiled, self.compile_ms = artifact.path, compiled, compile_ms
        self._request, self._again = compiled.create_infer_request(), _plain_infer()
        port = compiled.inputs[0]
        self._input = image_input(artifact).model_copy(update={"dtype": np.dtype(port.element_type.to_dtype()).name})
        names = [next(iter(sorted(output.get_names())), "") for output in compiled.outputs]
        self._outputs = artifact.outputs
        self._ports = [compiled.outputs[k] for k in output_positions(artifact, names)]
        self._given: npt.NDArray[Any] | None = None

    def feed(self, images: Images) -> npt.NDArray[Any]:
        self._given = None  # the same array may hold another image now
        return arranged(images, self._input, self._path)

    def invoke(self, fed: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        if fed is self._given:
            results = self._again(self._request, {}, True, True)
        else:
            results = self._request.infer([fed], share_inputs=True, share_outputs=True)
            self._given = fed
        return [results[port] for port in self._ports]

    def read(self, raw: list[npt.NDArray[Any]]) -> FloatArray:
        return first_output(raw, self._outputs)

    def read_all(self, raw: list[npt.NDArray[Any]]) -> dict[str, FloatArray]:
        return every_output(raw, self._outputs)

    def close(self) -> None:
        self._request = self._compiled = self._given = None


def _plain_infer() -> Any:
    """`infer(request, inputs, share_outputs, decode_strings)` as the C++ binding has it, below the Python wrapper."""
    from openvino._pyopenvino import InferRequest

    return InferRequest.infer


def _read(path: Path) -> Any:
    import openvino

    # OpenVINO would otherwise offer the file to each of its frontends, which write to stderr.
    if b"<net" not in path.read_bytes()[:4096]:
        raise InputError("not an OpenVINO IR (its XML has no <net>)", where=path)
    try:
        return openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot read it ({_cause(error)})", where=path) from error


def compile_model(path: Path, *, threads: int, precision: str, counters: bool = False) -> tuple[Any, float]:
    """The compiled model, and the ms that compiling took beside reading. counters: let it time every layer.

    Raises: InputError: not an IR that OpenVINO can compile.
    """
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    # Without the hint a float model runs in bf16 on a CPU that has AVX512-BF16: neither parity nor a fair baseline.
    if precision != "default":
        settings["INFERENCE_PRECISION_HINT"] = precision
    if counters:
        settings["PERF_COUNT"] = True
    model, core, start = _read(path), openvino.Core(), time.perf_counter()
    try:
        return core.compile_model(model, "CPU", settings), 1e3 * (time.perf_counter() - start)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot compile it ({_cause(error)})", where=path) from error


def _cause(error: RuntimeError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("Exception", "Check"))]
    return lines[-1].strip()[:200] if lines else first_line(error)


def file_tensors(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a file; a free dimension is -1. Raises: InputError: not an IR."""
    model = _read(path)
    return [_spec(port) for port in model.inputs], [_spec(port) for port in model.outputs]


def _spec(port: Any) -> TensorSpec:
    name = next(iter(sorted(port.get_names())), "")
    return TensorSpec(name=name, shape=_shape(port), dtype=np.dtype(port.element_type.to_dtype()).name, layout="NCHW")


def op_report(artifact: Artifact) -> OpReport:
    """From the compiled model's execution graph on this CPU: `layerType` and `runtimePrecision` of every layer.

    detail: `precisions` at the float32 hint that sessions take, `default_precisions` without it: what a user gets who
    says nothing, bf16 for float layers on CPUs that have it; `primitives`: the kernels of the compute operators.
    """
    layers = _layers(artifact.path, "f32")
    compute = _compute_ops(layers, artifact.path)
    return OpReport.of(
        Counter(layer.kind for layer in layers if layer.kind != "Const"),
        compute,
        source="OpenVINO execution graph",
        fp16_compute=any(layer.precision == "f16" for layer in layers if layer.kind in _COMPUTE),
        fp16_weights=_stores_fp16(artifact.path),
        primitives=dict(Counter(layer.primitive for layer in layers if layer.kind in _COMPUTE)),
        precisions=_precisions(layers),
        # compiling int8 takes seconds, and int8 layers stay int8 by default
        default_precisions=_precisions(layers if all(op.int8 for op in compute) else _layers(artifact.path, "default")),
    )


def compute_ops(path: Path, compiled: Any) -> list[ComputeOp]:
    """Convolutions and products of a compiled model, by the names that its performance counters have too."""
    return _compute_ops([_facts(layer) for layer in compiled.get_runtime_model().get_ordered_ops()], path)


def _compute_ops(layers: list[_Layer], path: Path) -> list[ComputeOp]:
    return [_compute_op(layer) for layer in layers if layer.kind in _COMPUTE] + _fused_attention(layers, path)


class _Layer(NamedTuple):
    name: str
    kind: str
    precision: str
    primitive: str
    originals: tuple[str, ...]  # names, in the IR, of the operators that were fused into it
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


def _layers(path: Path, precision: str) -> list[_Layer]:
    compiled, _ = compile_model(path, threads=1, precision=precision)
    return [_facts(layer) for layer in compiled.get_runtime_model().get_ordered_ops()]


def _precisions(layers: list[_Layer]) -> dict[str, int]:
    return dict(Counter(f"{layer.kind} {layer.precision}" for layer in layers if layer.kind in _COMPUTE))


def _compute_op(layer: _Layer) -> ComputeOp:
    return ComputeOp(
        name=layer.name,
        kind=_COMPUTE[layer.kind],
        op_type=layer.kind,
        int8=layer.precision in _INT8,
        macs=_macs(layer),
    )


def _fused_attention(layers: list[_Layer], path: Path) -> list[ComputeOp]:
    """Matrix products that the CPU plugin compiled into a Subgraph, found by the names they have in the IR."""
    products = {op.get_friendly_name(): op for op in _read(path).get_ops() if op.get_type_name() in _FUSED_PRODUCTS}
    return [
        ComputeOp(
            name=name,
            kind="linear",
            op_type="Subgraph",
            int8=layer.precision in _INT8,
            macs=_product_macs(products[name]),
        )
        for layer in layers
        if layer.kind == "Subgraph"
        for name in layer.originals
        if name in products
    ]


def _product_macs(op: Any) -> int:
    output, left, right = (_shape(port) for port in (op.outputs()[0], *op.inputs()[:2]))
    if op.get_type_name() == "MatMul":
        return matmul_macs(output, left)
    keys = right[-2]  # query times key, then their softmax times value
    return math.prod(left) * keys + math.prod(output) * keys


def _macs(layer: _Layer) -> int:
    data, output = layer.inputs[0], layer.output
    if _COMPUTE[layer.kind] == "linear":
        return matmul_macs(output, data)
    weight = layer.inputs[1]
    grouped = weight[1:] if len(weight) > len(output) else weight  # (groups, out, in, ...) or (out, in, ...)
    return conv_macs(data if layer.kind == "Deconvolution" else output, grouped)


def _stores_fp16(path: Path) -> bool:
    constants = (op for op in _read(path).get_ops() if op.get_type_name() == "Constant")
    return any(op.get_element_type().get_type_name() == "f16" for op in constants)


def _facts(layer: Any) -> _Layer:
    info = layer.get_rt_info()
    kind, precision, primitive, originals = (info[key].astype(str) if key in info else "" for key in _FACTS)
    outputs = [_shape(port) for port in layer.outputs()] or [()]  # a Result has none
    return _Layer(
        name=layer.get_friendly_name(),
        kind=kind,
        precision=precision,
        primitive=primitive,
        originals=tuple(originals.split(",")),
        inputs=tuple(_shape(port) for port in layer.inputs()),
        output=outputs[0],
    )


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())
