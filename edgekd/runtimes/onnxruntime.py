"""ONNX Runtime (`.onnx`) on its CPU provider, and the graph it really runs after its own optimiser."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, TensorSpec
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

OPTIONS = ("optimise",)
# Steps of a softmax's codes under which its operator on codes overflows: QLinearSoftmax (1.31) multiplies a table of up
# to 2^23 by 1 / output scale in 32 bits, and attention over many tokens becomes noise.
SOFTMAX_STEP_MIN = 1 / 512
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
_INT8 = (
    "QLinearConv",
    "ConvInteger",
    "QGemm",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)
_FLOAT16 = 10  # onnx.TensorProto.FLOAT16


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> OnnxSession:
    """Raises: InputError: not an ONNX model that this ONNX Runtime can load."""
    loaded = load(artifact.path, threads=threads, optimise=bool(options.get("optimise", True)))
    return OnnxSession(artifact, loaded, path=artifact.path)


class OnnxSession:
    """`invoke` is one `session.run`: input by reference, outputs allocated by the runtime."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, loaded: Any, *, path: Path) -> None:
        self._path, self._session = path, loaded
        declared, node = image_input(artifact), loaded.get_inputs()[0]
        self._input = declared.model_copy(update={"name": node.name, "dtype": numpy_dtype(node.type)})
        names = [output.name for output in loaded.get_outputs()]
        self._outputs = artifact.outputs
        self._output_names = [names[k] for k in output_positions(artifact, names)]

    def feed(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        return {self._input.name: arranged(images, self._input, self._path)}

    def invoke(self, fed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        raw: list[npt.NDArray[Any]] = self._session.run(self._output_names, fed)
        return raw

    def read(self, raw: list[npt.NDArray[Any]]) -> FloatArray:
        return first_output(raw, self._outputs)

    def read_all(self, raw: list[npt.NDArray[Any]]) -> dict[str, FloatArray]:
        return every_output(raw, self._outputs)

    def close(self) -> None:
        self._session = None


def load(
    path: Path, *, threads: int = 1, optimise: bool = True, on_codes: bool = True, optimised_to: Path | None = None
) -> Any:
    """An InferenceSession on the CPU. optimised_to: where ONNX Runtime writes the graph it will run.

    on_codes: whether operators between a dequantise and a quantise become operators on codes.
    Raises: InputError: not an ONNX model that this ONNX Runtime can load.
    """
    settings = _settings(threads=threads, optimise=optimise)
    if optimised_to is not None:
        settings.optimized_model_filepath = str(optimised_to)
    return _session(path, settings, **({} if on_codes else {"disabled_optimizers": ["QDQSelectorActionTransformer"]}))


def _settings(*, threads: int, optimise: bool = True) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return settings


def _session(path: Path, settings: Any, **more: Any) -> Any:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"], **more)
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
    """From the graph that ONNX Runtime writes after ORT_ENABLE_ALL, as it will run it on this CPU.

    Its names and shapes are those before the float convolutions' channels are padded to blocks of the vector width.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgekd-ort-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        load(artifact.path, optimised_to=optimised)
        graph = onnx.load(optimised).graph
        calls = _calls(artifact.path, Path(folder))
    return OpReport.of(
        Counter(node.op_type for node in graph.node),
        [_compute_op(call) for call in calls if call["op_name"] in _COMPUTE],
        source="ONNX Runtime optimised graph",
        fp16_compute=has_fp16(graph),
        # The optimiser folds the casts of fp16 weights that its CPU kernels cannot take: ask the file.
        fp16_weights=has_fp16(onnx.load(artifact.path).graph),
    )


def _calls(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The operators that one inference ran, as the profiler notes them: com.microsoft's own have no shape inference."""
    settings = _settings(threads=1)
    # A weight that its kernel has packed is freed, and missing from the note.
    settings.add_session_config_entry("session.disable_prepacking", "1")
    return _noted(path, settings, folder, runs=1, disabled_optimizers=["NchwcTransformer"])


def _noted(path: Path, settings: Any, folder: Path, *, runs: int, **more: Any) -> list[dict[str, Any]]:
    """What the profiler notes about every kernel of every run: its arguments, `name` and `dur` (us)."""
    settings.enable_profiling, settings.profile_file_prefix = True, str(folder / "profile")
    session = _session(path, settings, **more)
    fed = {node.name: _zeros(node) for node in session.get_inputs()}
    for _ in range(runs):
        session.run(None, fed)
    notes = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    suffix = "_kernel_time"
    kernels = [note for note in notes if note.get("cat") == "Node" and note["name"].endswith(suffix)]
    return [{**note["args"], "name": note["name"].removesuffix(suffix), "dur": note["dur"]} for note in kernels]


def kernel_times(artifact: Artifact, *, threads: int, runs: int, optimise: bool = True) -> list[dict[str, Any]]:
    """As `_noted`, of the graph as it really runs, all runs one after the other."""
    with tempfile.TemporaryDirectory(prefix="edgekd-ort-") as folder:
        return _noted(artifact.path, _settings(threads=threads, optimise=optimise), Path(folder), runs=runs)


def multiplies(op_type: str) -> bool:
    """Whether an operator is a convolution or a matrix product."""
    return op_type in _COMPUTE


def compute_ops(artifact: Artifact) -> list[ComputeOp]:
    """Convolutions and products in the order they run."""
    with tempfile.TemporaryDirectory(prefix="edgekd-ort-") as folder:
        calls = _calls(artifact.path, Path(folder))
    return [_compute_op(call) for call in calls if call["op_name"] in _COMPUTE]


def _zeros(node: Any) -> npt.NDArray[Any]:
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in node.shape]
    return np.zeros(shape, numpy_dtype(node.type))


def has_fp16(graph: Any) -> bool:
    """Whether any constant of an ONNX graph is fp16; ONNX operators compute in the type of their constants."""
    return any(tensor.data_type == _FLOAT16 for tensor in graph.initializer)


def _compute_op(call: Mapping[str, Any]) -> ComputeOp:
    op_type = call["op_name"]
    operands, results = (
        [next(iter(item.values())) for item in call[key]] for key in ("input_type_shape", "output_type_shape")
    )
    weight = operands[3 if op_type.startswith("QLinear") else 1]
    return ComputeOp(
        name=call["name"],
        kind=_COMPUTE[op_type],
        op_type=op_type,
        int8=op_type in _INT8,
        macs=onnx_macs(op_type, operands[0], weight, results[0]),
    )


def onnx_macs(op_type: str, data: Shape, weight: Shape, output: Shape) -> int:
    """Multiply-adds of an ONNX convolution or product.

    >>> onnx_macs("Conv", (1, 3, 8, 8), (16, 3, 3, 3), (1, 16, 8, 8)) == 16 * 64 * 27
    True
    """
    if _COMPUTE[op_type] == "linear":
        return matmul_macs(output, data)
    return conv_macs(data if op_type == "ConvTranspose" else output, weight)
