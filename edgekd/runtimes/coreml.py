"""Core ML (`.mlpackage`): prediction on a Mac; elsewhere its MIL program, read from disk, interpreted in torch."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import InputError
from edgekd.runtimes.macs import conv_macs, matmul_macs
from edgekd.runtimes.session import (
    ComputeKind,
    ComputeOp,
    Executed,
    FloatArray,
    Images,
    OpReport,
    Session,
    arranged,
    every_output,
    first_line,
    first_output,
    image_input,
)

OPTIONS: tuple[str, ...] = ()
INTERPRETED_NOTE = (
    "the MIL program interpreted in torch, not executed by Core ML: it proves numerics, not any Apple chip"
)
_ATTENTION = "scaled_dot_product_attention"
_COMPUTE: dict[str, ComputeKind] = {
    "conv": "conv",
    "conv_transpose": "conv",
    "linear": "linear",
    "matmul": "linear",
    _ATTENTION: "linear",
}
_LAYOUT_ONLY = ("reshape", "transpose", "squeeze", "expand_dims", "identity", "flatten2d")
# MLArrayDataType, by value of the enumeration in Model.proto
_DTYPES = {65568: "float32", 65552: "float16", 131104: "int32", 65600: "float64"}


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> Session:
    """Raises: InputError: not an .mlpackage, or an operator that the interpreter does not know."""
    if sys.platform == "darwin":
        return PredictSession(artifact, _ml_model(artifact.path))
    import torch

    from edgekd.runtimes.mil import MilProgram

    torch.set_num_threads(threads)
    return InterpretedSession(artifact, MilProgram(load_mil(artifact.path), where=artifact.path))


class InterpretedSession:
    """`invoke` interprets the MIL program in float32; weights and casts are rounded as the file says."""

    executed: Executed = "interpreted"
    note = INTERPRETED_NOTE

    def __init__(self, artifact: Artifact, program: Any) -> None:
        self._path, self._program, self._input = artifact.path, program, image_input(artifact)
        self._outputs = artifact.outputs

    def feed(self, images: Images) -> Any:
        import torch

        return torch.from_numpy(arranged(images, self._input, self._path).astype(np.float32))

    def invoke(self, fed: Any) -> Any:
        return self._program.run(fed, outputs=[spec.name for spec in self._outputs])

    def read(self, raw: Any) -> FloatArray:
        return first_output([raw[0].numpy()], self._outputs)

    def read_all(self, raw: Any) -> dict[str, FloatArray]:
        return every_output([values.numpy() for values in raw], self._outputs)

    def close(self) -> None:
        self._program = None


class PredictSession:
    """`invoke` is one `MLModel.predict` on this Mac, compute unit chosen by Core ML."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, model: Any) -> None:
        self._path, self._model, self._input = artifact.path, model, image_input(artifact)
        self._outputs = artifact.outputs
        feature = model.get_spec().description.input[0]
        self._takes_image = feature.type.WhichOneof("Type") == "imageType"

    def feed(self, images: Images) -> dict[str, Any]:
        values = arranged(images, self._input, self._path)
        return {self._input.name: _picture(values) if self._takes_image else values}

    def invoke(self, fed: dict[str, Any]) -> list[Any]:
        results = self._model.predict(fed)
        return [_dense(results[spec.name]) for spec in self._outputs]

    def read(self, raw: list[Any]) -> FloatArray:
        return first_output(raw, self._outputs)

    def read_all(self, raw: list[Any]) -> dict[str, FloatArray]:
        return every_output(raw, self._outputs)

    def close(self) -> None:
        self._model = None


def _picture(pixels: npt.NDArray[Any]) -> Any:
    """Pixels [1, C, H, W] as the PIL image that an ImageType input takes."""
    from PIL import Image

    codes = np.rint(pixels[0]).astype(np.uint8)
    return Image.fromarray(codes[0] if len(codes) == 1 else np.ascontiguousarray(codes.transpose(1, 2, 0)))


def _dense(result: Any) -> npt.NDArray[Any]:
    """An array; a classifier's dictionary of label -> score becomes [1, classes] in the order of its labels."""
    return np.array([list(result.values())] if isinstance(result, dict) else result, dtype=np.float32)


def _ml_model(path: Path) -> Any:
    with quiet_coremltools() as coremltools:
        try:
            return coremltools.models.MLModel(str(path))
        except Exception as error:  # Objective-C errors arrive as RuntimeError, bad files as several others
            raise InputError(f"Core ML cannot load it ({first_line(error)})", where=path) from error


@contextlib.contextmanager
def quiet_coremltools() -> Iterator[Any]:
    """coremltools, imported without TensorFlow and with its warnings (about torch, scikit-learn, no Mac) held back.

    Beside an installed TensorFlow its import takes 30 s longer, and crashes where triton is loaded too.
    """
    hidden = "tensorflow" not in sys.modules
    previous = logging.root.manager.disable
    if hidden:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    logging.disable(logging.WARNING)
    try:
        import coremltools

        yield coremltools
    finally:
        logging.disable(previous)
        if hidden:
            del sys.modules["tensorflow"]


def load_spec(path: Path) -> Any:
    """The model's protobuf. Raises: InputError: not an .mlpackage with an ML program."""
    with quiet_coremltools() as coremltools:
        try:
            spec = coremltools.models.utils.load_spec(str(path))
        except Exception as error:  # a bare Exception, RuntimeError or protobuf's DecodeError
            raise InputError(f"not a Core ML package ({first_line(error)})", where=path) from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise InputError(
            f"a Core ML {spec.WhichOneof('Type') or 'file without a model'}, not an ML program", where=path
        )
    return spec


def load_mil(path: Path) -> Any:
    """The MIL function `main`, weights included. Raises: InputError: the package is corrupt."""
    spec = load_spec(path)
    with quiet_coremltools():
        from coremltools.converters.mil.frontend.milproto.load import load

        weights = path / "Data" / "com.apple.CoreML" / "weights"
        try:
            program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights))
        except Exception as error:  # the blob reader raises RuntimeError, the loader ValueError or AssertionError
            raise InputError(f"cannot reload its MIL program ({first_line(error)})", where=path) from error
    return program.functions["main"]


def file_tensors(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a package. Raises: InputError: not an ML program, or an input that is not an array."""
    description = load_spec(path).description
    inputs = [_spec(feature, path) for feature in description.input]
    return inputs, [_spec(feature, path) for feature in description.output]


def _spec(feature: Any, path: Path) -> TensorSpec:
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise InputError(f"'{feature.name}' is a {kind}, not an array", where=path, fix="export it with array input")
    array = feature.type.multiArrayType
    shape = tuple(int(size) for size in array.shape)
    return TensorSpec(name=feature.name, shape=shape, dtype=_DTYPES.get(array.dataType, "float32"), layout="NCHW")


def op_report(artifact: Artifact) -> OpReport:
    """From the stored MIL program: a compute operator is int8 when its data comes from `dequantize` and its weight from
    integers. Which unit of the chip runs it, and at what precision, Core ML decides when it loads the model.
    """
    function = load_mil(artifact.path)
    operations = [op for op in function.operations if op.op_type != "const"]
    compute = [op for op in operations if op.op_type in _COMPUTE]
    return OpReport.of(
        Counter(op.op_type for op in operations),
        [_compute_op(op) for op in compute],
        source="MIL program as stored",
        fp16_compute=any(_is_fp16(op) for op in compute),
        fp16_weights=any(_is_fp16(op) for op in function.operations if op.op_type == "const"),
        int8_weights=sum(_integer_weight(op) for op in compute),
    )


def _compute_op(op: Any) -> ComputeOp:
    data = None if op.op_type == _ATTENTION else _behind_layout(op.inputs["x"])
    int8 = data is not None and data.op_type == "dequantize" and _integer_weight(op)
    return ComputeOp(name=op.name, kind=_COMPUTE[op.op_type], op_type=op.op_type, int8=int8, macs=_macs(op))


def _macs(op: Any) -> int:
    output = _shape(op.outputs[0])
    if op.op_type == _ATTENTION:  # query times key, then their softmax times value
        query, key = _shape(op.inputs["query"]), _shape(op.inputs["key"])
        return math.prod(query) * key[-2] + math.prod(output) * key[-2]
    data = _shape(op.inputs["x"])
    if _COMPUTE[op.op_type] == "linear":
        return matmul_macs(output, data)
    return conv_macs(data if op.op_type == "conv_transpose" else output, _shape(op.inputs["weight"]))


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in variable.shape)


def _integer_weight(op: Any) -> bool:
    if op.op_type == _ATTENTION:
        return False
    source = _behind_layout(op.inputs["y" if op.op_type == "matmul" else "weight"])
    if source is None or source.op_type not in _STORED_AS:
        return False
    stored = source.inputs[_STORED_AS[source.op_type]]
    return stored.val is None or np.asarray(stored.val).dtype.kind in "iu"


_STORED_AS = {
    "dequantize": "input",
    "constexpr_affine_dequantize": "quantized_data",
    "constexpr_blockwise_shift_scale": "data",
}


def _behind_layout(variable: Any) -> Any:
    op = variable.op
    while op is not None and op.op_type in _LAYOUT_ONLY:
        op = op.inputs["x"].op
    return op


def _is_fp16(op: Any) -> bool:
    # already imported, quietly, by whoever loaded the program
    from coremltools.converters.mil.mil import types

    return bool(op.outputs[0].dtype == types.fp16)
