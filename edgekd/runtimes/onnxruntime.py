"""ONNX Runtime (`.onnx`) on its CPU provider, and the graph it really runs after its own optimiser."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekd.artifact import Artifact, TensorSpec
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

OPTIONS = ("optimise",)
_COMPUTE: dict[str, ComputeKind] = {
    "Conv": "conv",
    "FusedConv": "conv",
    "NhwcFusedConv": "conv",
    "ConvTranspose": "conv",
    "QLinearConv": "conv",
    "ConvInteger": "conv",
    "Gemm": "linear",
    "FusedGemm": "linear",
    "MatMul": "linear",
    "FusedMatMul": "linear",
    "QGemm": "linear",
    "QLinearMatMul": "linear",
    "MatMulInteger": "linear",
    "MatMulIntegerToFloat": "linear",
    "DynamicQuantizeMatMul": "linear",
    "MatMulNBits": "linear",
}
_INT8 = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
_FLOAT16 = 10  # onnx.TensorProto.FLOAT16


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> OnnxSession:
    """Raises: InputError: not an ONNX model that this ONNX Runtime can load."""
    loaded = load(artifact.path, threads=threads, optimise=bool(options.get("optimise", True)))
    return OnnxSession(artifact, loaded, path=artifact.path)


class OnnxSession:
    """`invoke` is one `session.run`: input by reference, output allocated by the runtime."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, loaded: Any, *, path: Path) -> None:
        self._path, self._session = path, loaded
        declared, node = image_input(artifact), loaded.get_inputs()[0]
        self._input = declared.model_copy(update={"name": node.name, "dtype": numpy_dtype(node.type)})
        self._output = artifact.outputs[0]
        self._output_name = loaded.get_outputs()[0].name

    def feed(self, images: FloatArray) -> dict[str, npt.NDArray[Any]]:
        return {self._input.name: arranged(images, self._input, self._path)}

    def invoke(self, fed: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        raw: npt.NDArray[Any] = self._session.run([self._output_name], fed)[0]
        return raw

    def read(self, raw: npt.NDArray[Any]) -> FloatArray:
        return dequantised(raw, self._output)

    def close(self) -> None:
        self._session = None


def load(path: Path, *, threads: int = 1, optimise: bool = True, optimised_to: Path | None = None) -> Any:
    """An InferenceSession on the CPU. optimised_to: where ONNX Runtime writes the graph it will run.

    Raises: InputError: not an ONNX model that this ONNX Runtime can load.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    if optimised_to is not None:
        settings.optimized_model_filepath = str(optimised_to)
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise InputError(f"ONNX Runtime cannot load it ({first_line(error)})", where=path) from error


def numpy_dtype(onnx_type: str) -> str:
    """numpy's name for a type as ONNX Runtime writes it.

    >>> numpy_dtype("tensor(float)"), numpy_dtype("tensor(uint8)")
    ('float32', 'uint8')
    """
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def file_tensors(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a file; a free dimension is -1. Raises: InputError: not an ONNX model."""
    loaded = load(path, optimise=False)
    return [_spec(node) for node in loaded.get_inputs()], [_spec(node) for node in loaded.get_outputs()]


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in node.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=numpy_dtype(node.type), layout="NCHW")


def op_report(artifact: Artifact) -> OpReport:
    """From the graph that ONNX Runtime writes after ORT_ENABLE_ALL, as it will run it on this CPU."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgekd-ort-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        load(artifact.path, optimised_to=optimised)
        graph = onnx.load(optimised).graph
    compute = [_compute_op(node) for node in graph.node if node.op_type in _COMPUTE]
    return OpReport.of(
        Counter(node.op_type for node in graph.node),
        compute,
        source="ONNX Runtime optimised graph",
        fp16_compute=has_fp16(graph),
        # The optimiser folds the casts of fp16 weights that its CPU kernels cannot take: ask the file.
        fp16_weights=has_fp16(onnx.load(artifact.path).graph),
    )


def has_fp16(graph: Any) -> bool:
    """Whether any constant of an ONNX graph is fp16; ONNX operators compute in the type of their constants."""
    return any(tensor.data_type == _FLOAT16 for tensor in graph.initializer)


def _compute_op(node: Any) -> ComputeOp:
    name = node.name or (node.output[0] if node.output else "")
    return ComputeOp(name=name, kind=_COMPUTE[node.op_type], op_type=node.op_type, int8=node.op_type in _INT8)
