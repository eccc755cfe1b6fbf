"""A `.tflite` file as data: names, order and types of its inputs and outputs, changed without converting again.

The converter writes NHWC float or int8 tensors under names of its own. Everything else (float32 or uint8 around an int8
graph, pixels normalised inside) is a few operators at the ends of the graph, and those are written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import TensorSpec
from edgekd.errors import ConversionError
from edgekd.export.io_forms import PixelAffine
from edgekd.export.tflite_metadata import BUFFER_NAME

CODES = {"int8": "INT8", "uint8": "UINT8", "float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32"}

OPTIONS = {
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "CAST": "CastOptions",
    "RESHAPE": "ReshapeOptions",
    "TRANSPOSE": "TransposeOptions",
}
# int8 (scale, zero point) that LiteRT's kernels insist on: tensorflow/lite/kernels/activations.cc
FIXED_GRIDS = {"LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "TANH": (1 / 128, 0)}


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


class TfliteFile:
    """One model with one subgraph, in memory. Raises: ConversionError: it has several subgraphs or inputs."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.tools import flatbuffer_utils

        self.model: Any = flatbuffer_utils.read_model(str(path))
        if not self.model.subgraphs or len(self.model.subgraphs[0].inputs) != 1:
            raise ConversionError("the result has not one input")
        self.graph: Any = self.model.subgraphs[0]

    def save(self, path: Path) -> None:
        """Write the model; whatever was appended to the old file is gone."""
        from ai_edge_litert.tools import flatbuffer_utils

        path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(self.model)))

    def operators(self) -> list[str]:
        """Names of the operators, in order."""
        names = {value: name for name, value in vars(_schema().BuiltinOperator).items() if isinstance(value, int)}
        codes = self.model.operatorCodes
        return [names[_code_of(codes[op.opcodeIndex])] for op in self.graph.operators]

    def stored_dtypes(self) -> set[str]:
        """Element types of all tensors."""
        names = {value: name for name, value in vars(_schema().TensorType).items() if isinstance(value, int)}
        return {names[tensor.type].lower() for tensor in self.graph.tensors}

    def name_io(self, image: str, outputs: Sequence[str]) -> None:
        """Name input and outputs, in the signature's order and in the graph's own, which it is given too.

        Raises: ConversionError: the number of outputs is another.
        """
        (signature,) = self.model.signatureDefs
        ordered = sorted(signature.outputs, key=lambda entry: _position(entry.name))
        if len(ordered) != len(outputs):
            raise ConversionError(f"the result has {len(ordered)} outputs where the program has {len(outputs)}")
        for entry, name in zip(ordered, outputs, strict=True):
            entry.name = name
            self.graph.tensors[entry.tensorIndex].name = name
        signature.inputs[0].name = image
        self.graph.tensors[signature.inputs[0].tensorIndex].name = image
        signature.outputs = ordered
        self.graph.outputs = [entry.tensorIndex for entry in ordered]

    def float_io(self) -> None:
        """float32 input and outputs around an int8 graph."""
        self._float_input()
        for index in list(self.graph.outputs):
            if self._is_grid(index):
                self._replace_output(index, "float32", None)

    def float_outputs(self) -> None:
        """float32 outputs; the input stays as it is."""
        for index in list(self.graph.outputs):
            if self._is_grid(index):
                self._replace_output(index, "float32", None)

    def uint8_outputs(self) -> None:
        """uint8 outputs on the int8 grid, zero points + 128."""
        for index in list(self.graph.outputs):
            if self._is_grid(index):
                self._replace_output(index, "uint8", self._grid(index, 128))

    def uint8_io(self) -> None:
        """uint8 input and outputs on the int8 grid, zero points + 128."""
        index = self.graph.inputs[0]
        added = self._tensor_like(index, "uint8", self._grid(index, 128))
        self._insert(0, "QUANTIZE", [added], [index])
        self._replace_input(added)
        self.uint8_outputs()

    def fold_pixels(self, affine: PixelAffine, dtype: str) -> None:
        """Take pixels 0..255 (uint8 or float32) and normalise them: a cast, a multiplication and an addition."""
        if self._is_grid(self.graph.inputs[0]):
            self._float_input()
        normalised = self.graph.inputs[0]
        scaled, pixels = self._tensor_like(normalised, "float32"), self._tensor_like(normalised, "float32")
        self._insert(0, "ADD", [scaled, self._channel_constant(affine.offset, "offset")], [normalised])
        self._insert(0, "MUL", [pixels, self._channel_constant(affine.scale, "scale")], [scaled])
        if dtype == "uint8":
            codes = self._tensor_like(normalised, "uint8")
            self._insert(0, "CAST", [codes], [pixels])
            pixels = codes
        self._replace_input(pixels)

    def add_metadata(self, buffer: bytes) -> None:
        """Store a metadata flatbuffer in the place of an earlier one."""
        schema = _schema()
        stored, entry = schema.BufferT(), schema.MetadataT()
        stored.data = np.frombuffer(buffer, dtype=np.uint8)
        self.model.buffers.append(stored)
        entry.name, entry.buffer = BUFFER_NAME, len(self.model.buffers) - 1
        kept = [old for old in self.model.metadata or [] if _text(old.name) != BUFFER_NAME]
        self.model.metadata = [*kept, entry]

    def specs(self, *, layout: str, holds: str) -> tuple[TensorSpec, list[TensorSpec]]:
        """Input and outputs as the file itself declares them; layout, holds: of the input, which it cannot say."""
        from edgekd.export.describe import image_spec, output_spec

        (image,) = (self._declared(index) for index in self.graph.inputs)
        grid = {"scale": None, "zero_point": None} if holds == "pixels" else {}
        found = image_spec(layout=layout, holds=holds, **{**image, **grid})
        return found, [output_spec(**self._declared(index)) for index in self.graph.outputs]

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(int(size) for size in self.graph.tensors[index].shape)

    def grid(self, index: int) -> tuple[float, int] | None:
        """(scale, zero point) of a tensor on an int8 or uint8 grid."""
        return self._grid(index) if self._is_grid(index) else None

    def integers(self, index: int) -> list[int] | None:
        """Values of an int32 constant, None where the tensor is not one."""
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or tensor.type != _schema().TensorType.INT32:
            return None
        return [int(value) for value in np.frombuffer(bytes(data), dtype=np.int32)]

    def integer_constant(self, values: Sequence[int]) -> int:
        """Index of a new int32 constant of one axis."""
        return self._constant(np.array(values, dtype=np.int32), f"edgekd_{len(self.graph.tensors)}")

    def make_reshape(self, operator: Any, source: int) -> None:
        """Turn an operator into a reshape of another tensor to the shape of its own output."""
        schema, shape = _schema(), self.shape(int(operator.outputs[0]))
        operator.opcodeIndex = self._opcode(schema.BuiltinOperator.RESHAPE)
        operator.inputs = [source, self.integer_constant(shape)]
        operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
        operator.builtinOptions = schema.ReshapeOptionsT()
        operator.builtinOptions.newShape = list(shape)

    def make_transpose(self, operator: Any, source: int, shape: Sequence[int], order: Sequence[int]) -> None:
        """Put a reshape to `shape`, a transpose and a reshape in the place of an operator."""
        target, position = int(operator.outputs[0]), self.graph.operators.index(operator)
        split, turned = self._tensor_as(target, shape), self._tensor_as(target, [shape[axis] for axis in order])
        self._insert(position, "TRANSPOSE", [split, self.integer_constant(order)], [turned])
        self._insert(position, "RESHAPE", [source, self.integer_constant(shape)], [split])
        self.make_reshape(operator, turned)

    def meet_fixed_grids(self) -> None:
        """Give operators that write on one grid only that grid, and a requantisation to the one the program has.

        LiteRT refuses to load int8 LOGISTIC, SOFTMAX and TANH on any other.
        """
        for kind, operator in list(zip(self.operators(), self.graph.operators, strict=True)):
            index = int(operator.outputs[0])
            fixed, found = FIXED_GRIDS.get(kind), self.grid(index)
            if fixed is None or found is None or (np.float32(found[0]), found[1]) == (np.float32(fixed[0]), fixed[1]):
                continue
            raw = self._tensor_like(index, "int8", fixed)
            operator.outputs = [raw]
            self._insert(self.graph.operators.index(operator) + 1, "QUANTIZE", [raw], [index])

    def _declared(self, index: int) -> dict[str, Any]:
        tensor = self.graph.tensors[index]
        names = {getattr(_schema().TensorType, code): name for name, code in CODES.items()}
        described: dict[str, Any] = {
            "name": _text(tensor.name),
            "shape": tuple(int(size) for size in tensor.shape),
            "dtype": names.get(tensor.type, str(tensor.type)),
        }
        if self._is_grid(index):
            scale, zero_point = self._grid(index)
            described.update(scale=scale, zero_point=zero_point)
        return described

    def _float_input(self) -> None:
        index = self.graph.inputs[0]
        added = self._tensor_like(index, "float32")
        self._insert(0, "QUANTIZE", [added], [index])
        self._replace_input(added)

    def _replace_input(self, index: int) -> None:
        old = self.graph.inputs[0]
        self.graph.tensors[index].name, self.graph.tensors[old].name = (
            self.graph.tensors[old].name,
            f"{_text(self.graph.tensors[old].name)}_inner",
        )
        self.graph.inputs = [index]
        self.model.signatureDefs[0].inputs[0].tensorIndex = index

    def _replace_output(self, index: int, dtype: str, grid: tuple[float, int] | None) -> None:
        added = self._tensor_like(index, dtype, grid)
        self._insert(len(self.graph.operators), "DEQUANTIZE" if grid is None else "QUANTIZE", [index], [added])
        tensors = self.graph.tensors
        tensors[added].name, tensors[index].name = tensors[index].name, f"{_text(tensors[index].name)}_inner"
        self.graph.outputs = [added if output == index else output for output in self.graph.outputs]
        for entry in self.model.signatureDefs[0].outputs:
            entry.tensorIndex = added if entry.tensorIndex == index else entry.tensorIndex

    def _is_grid(self, index: int) -> bool:
        quantization = self.graph.tensors[index].quantization
        return quantization is not None and quantization.scale is not None and len(quantization.scale) == 1

    def _grid(self, index: int, shift: int = 0) -> tuple[float, int]:
        quantization = self.graph.tensors[index].quantization
        return float(quantization.scale[0]), int(quantization.zeroPoint[0]) + shift

    def _tensor_like(self, index: int, dtype: str, grid: tuple[float, int] | None = None) -> int:
        """Index of a new tensor of the same shape."""
        schema, old = _schema(), self.graph.tensors[index]
        tensor = schema.TensorT()
        tensor.shape, tensor.type = old.shape, getattr(schema.TensorType, CODES[dtype])
        tensor.name, tensor.buffer = f"edgekd_{len(self.graph.tensors)}", 0  # buffer 0 is the empty one
        tensor.hasRank = True
        if grid is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [grid[0]], [grid[1]]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _tensor_as(self, index: int, shape: Sequence[int]) -> int:
        """Index of a new tensor of the same type and grid and another shape."""
        names = {getattr(_schema().TensorType, code): name for name, code in CODES.items()}
        added = self._tensor_like(index, names[self.graph.tensors[index].type], self.grid(index))
        self.graph.tensors[added].shape = list(shape)
        return added

    def _channel_constant(self, values: Sequence[float], name: str) -> int:
        """Index of a new float32 constant (1, 1, 1, channels)."""
        return self._constant(np.array(values, dtype=np.float32).reshape(1, 1, 1, -1), f"image_{name}")

    def _constant(self, values: npt.NDArray[Any], name: str) -> int:
        schema = _schema()
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        tensor.shape, tensor.type = list(values.shape), getattr(schema.TensorType, CODES[values.dtype.name])
        tensor.name, tensor.buffer, tensor.hasRank = name, len(self.model.buffers) - 1, True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _insert(self, position: int, kind: str, inputs: list[int], outputs: list[int]) -> None:
        schema = _schema()
        operator = schema.OperatorT()
        operator.opcodeIndex = self._opcode(getattr(schema.BuiltinOperator, kind))
        operator.inputs, operator.outputs = inputs, outputs
        options = OPTIONS.get(kind)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
        if kind == "RESHAPE":
            operator.builtinOptions.newShape = list(self.shape(outputs[0]))
        if kind == "CAST":
            operator.builtinOptions.inDataType = self.graph.tensors[inputs[0]].type
            operator.builtinOptions.outDataType = self.graph.tensors[outputs[0]].type
        self.graph.operators.insert(position, operator)

    def _opcode(self, builtin: int) -> int:
        """Position of the operator code, appended on first use."""
        codes = self.model.operatorCodes
        for index, code in enumerate(codes):
            if _code_of(code) == builtin:
                return index
        code = _schema().OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        codes.append(code)
        return len(codes) - 1


def _code_of(code: Any) -> int:
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))  # small codes may be in the old field only


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _position(name: Any) -> tuple[int, str]:
    """Sort key of the converter's `output_0`, `output_1`, ... `output_10`."""
    digits = _text(name).rpartition("_")[2]
    return (int(digits), "") if digits.isdigit() else (0, _text(name))
