"""OpenVINO (IR `.xml` + `.bin`) on the CPU plugin, and the execution graph with the precision each layer runs at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import InputError, did_you_mean
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


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> OpenVINOSession:
    """Raises: InputError: not an IR that OpenVINO can compile, or an unknown precision."""
    precision = str(options.get("inference_precision", "f32"))
    if precision not in _PRECISIONS:
        fix = did_you_mean(precision, _PRECISIONS)
        raise InputError(f"unknown inference_precision '{precision}'", where="target 'openvino'", fix=fix)
    return OpenVINOSession(artifact, _compile(artifact.path, threads=threads, precision=precision))


class OpenVINOSession:
    """`invoke` is one synchronous infer request with shared input and output memory."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, compiled: Any) -> None:
        self._path, self._compiled = artifact.path, compiled
        self._request = compiled.create_infer_request()
        port = compiled.inputs[0]
        self._input = image_input(artifact).model_copy(update={"dtype": np.dtype(port.element_type.to_dtype()).name})
        self._output, self._port = artifact.outputs[0], compiled.outputs[0]

    def feed(self, images: FloatArray) -> npt.NDArray[Any]:
        return arranged(images, self._input, self._path)

    def invoke(self, fed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        results = self._request.infer([fed], share_inputs=True, share_outputs=True)
        raw: npt.NDArray[Any] = results[self._port]
        return raw

    def read(self, raw: npt.NDArray[Any]) -> FloatArray:
        return dequantised(raw, self._output)

    def close(self) -> None:
        self._request = self._compiled = None


def _read(path: Path) -> Any:
    import openvino

    # OpenVINO would otherwise offer the file to each of its frontends, which write to stderr.
    if b"<net" not in path.read_bytes()[:4096]:
        raise InputError("not an OpenVINO IR (its XML has no <net>)", where=path)
    try:
        return openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot read it ({_cause(error)})", where=path) from error


def _compile(path: Path, *, threads: int, precision: str) -> Any:
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    # Without the hint a float model runs in bf16 on a CPU that has AVX512-BF16: neither parity nor a fair baseline.
    if precision != "default":
        settings["INFERENCE_PRECISION_HINT"] = precision
    model = _read(path)
    try:
        return openvino.Core().compile_model(model, "CPU", settings)
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
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.partial_shape)
    name = next(iter(sorted(port.get_names())), "")
    return TensorSpec(name=name, shape=shape, dtype=np.dtype(port.element_type.to_dtype()).name, layout="NCHW")


def op_report(artifact: Artifact) -> OpReport:
    """From the compiled model's execution graph on this CPU: `layerType` and `runtimePrecision` of every layer."""
    compiled = _compile(artifact.path, threads=1, precision="f32")
    layers = [_facts(layer) for layer in compiled.get_runtime_model().get_ops()]
    compute = [
        ComputeOp(name=name, kind=_COMPUTE[kind], op_type=kind, int8=precision in _INT8)
        for name, kind, precision in layers
        if kind in _COMPUTE
    ]
    return OpReport.of(
        Counter(kind for _, kind, _ in layers if kind != "Const"),
        compute,
        source="OpenVINO execution graph",
        fp16_compute=any(precision == "f16" for _, kind, precision in layers if kind in _COMPUTE),
        fp16_weights=_stores_fp16(artifact.path),
        precisions=dict(Counter(f"{kind} {precision}" for _, kind, precision in layers if kind in _COMPUTE)),
    )


def _stores_fp16(path: Path) -> bool:
    constants = (op for op in _read(path).get_ops() if op.get_type_name() == "Constant")
    return any(op.get_element_type().get_type_name() == "f16" for op in constants)


def _facts(layer: Any) -> tuple[str, str, str]:
    info = layer.get_rt_info()
    kind, precision = (info[key].astype(str) if key in info else "" for key in ("layerType", "runtimePrecision"))
    return layer.get_friendly_name(), kind, precision
