"""A TFLite file as recorded calls: channels moved to the front, fused activations left where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import InputError, MissingExtraError
from edgekd.latency.record import Call, Operand, Recording, no_static_shape
from edgekd.profile.operators import DILATED, aten_names

_NAMES = aten_names("tflite")


def record_tflite(path: Path) -> Recording:
    """Calls of one run of the first subgraph at the shapes in the file. parameters: elements of its constants.

    Raises: InputError: not a TFLite model, or an operand of dynamic shape. MissingExtraError: no LiteRT to read it.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtraError("tflite", "ai-edge-litert", "tflite") from error
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise InputError("not a TFLite model (no TFL3 mark)", where=path)
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
    except Exception as error:
        raise InputError(f"not a TFLite model ({error})", where=path) from error
    return _Reader(model, schema, path).recording()


class _Reader:
    def __init__(self, model: Any, schema: Any, path: Path) -> None:
        self._graph, self._path = model.subgraphs[0], path
        self._ops = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self._codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
        stored = [(buffer.data is not None and len(buffer.data) > 0) or buffer.size > 0 for buffer in model.buffers]
        self._constants = {i for i, tensor in enumerate(self._graph.tensors) if stored[tensor.buffer]}
        self._storages: dict[int, int] = {}

    def recording(self) -> Recording:
        parameters = sum(math.prod(self._shape(index)) for index in self._constants)
        calls = tuple(call for operator in self._graph.operators for call in self._calls(operator))
        inputs = tuple(self._operand(int(i)) for i in self._graph.inputs)
        return Recording(calls, inputs, parameters, frozenset(self._operators()), "tflite")

    def _operators(self) -> Iterator[str]:
        for operator in self._graph.operators:
            yield self._builtin(operator)
            if getattr(operator.builtinOptions, "dilationHFactor", 1) > 1:
                yield self._builtin(operator) + DILATED

    def _builtin(self, operator: Any) -> str:
        return str(self._ops.get(self._codes[operator.opcodeIndex], "CUSTOM"))

    def _calls(self, operator: Any) -> list[Call]:
        builtin = self._builtin(operator)
        reads = [int(i) for i in operator.inputs if i >= 0]
        writes = [int(i) for i in operator.outputs]
        op = _NAMES.get(builtin, builtin)
        if op == "free" or all(i in self._constants for i in reads):
            self._constants.update(writes)
            return []
        if op == "view":
            source = next(i for i in reads if i not in self._constants)
            self._storages.update({i: self._storage(source) for i in writes})
            return []
        if op == "convolution":
            return [self._convolution(builtin, operator, reads, writes[0])]
        if op in ("mm", "bmm"):
            return [self._product(op, operator, reads, writes[0])]
        options = operator.builtinOptions
        window = getattr(options, "filterHeight", 1), getattr(options, "filterWidth", 1)
        attributes = {"kernel_size": list(window), "stride": [getattr(options, "strideH", 1)]}
        return [Call(op, tuple(map(self._operand, reads)), (self._operand(writes[0]),), attributes, self._name(writes))]

    def _convolution(self, builtin: str, operator: Any, reads: list[int], write: int) -> Call:
        if builtin == "TRANSPOSE_CONV":
            reads = [reads[2], reads[1], *reads[3:]]
        image, weight, out = (self._operand(i) for i in (reads[0], reads[1], write))
        sizes, groups = weight.shape, 1
        if builtin == "DEPTHWISE_CONV_2D":  # (1, kh, kw, out)
            groups = image.shape[-1]
            shape = (sizes[3], 1, sizes[1], sizes[2])
        elif builtin == "TRANSPOSE_CONV":  # (out, kh, kw, in)
            shape = (sizes[3], sizes[0], sizes[1], sizes[2])
        else:  # (out, kh, kw, in / groups)
            groups = max(1, image.shape[-1] // max(1, sizes[3]))
            shape = (sizes[0], sizes[3], sizes[1], sizes[2])
        attributes = {
            "groups": groups,
            "transposed": builtin == "TRANSPOSE_CONV",
            "stride": [operator.builtinOptions.strideH],
        }
        operands = (_channels_first(image), weight._replace(shape=shape), *map(self._operand, reads[2:3]))
        return Call("convolution", operands, (_channels_first(out),), attributes, self._name([write]))

    def _product(self, op: str, operator: Any, reads: list[int], write: int) -> Call:
        left, right = self._operand(reads[0]), self._operand(reads[1])
        if op == "mm":  # weights are (out, in)
            left, right = left._replace(shape=(1, right.shape[-1])), right._replace(shape=right.shape[::-1])
            bias = tuple(map(self._operand, reads[2:3]))
            return Call("addmm", (*bias, left._replace(shape=self._flat(reads[0], left.shape[-1])), right),
                        (self._operand(write),), {}, self._name([write]))  # fmt: skip
        if operator.builtinOptions is not None and operator.builtinOptions.adjX:
            left = left._replace(shape=(*left.shape[:-2], left.shape[-1], left.shape[-2]))
        return Call(op, (left, right), (self._operand(write),), {}, self._name([write]))

    def _flat(self, index: int, inner: int) -> tuple[int, int]:
        return math.prod(self._shape(index)) // max(1, inner), inner

    def _name(self, writes: list[int]) -> str:
        name = self._graph.tensors[writes[0]].name
        return name.decode() if isinstance(name, bytes) else str(name)

    def _storage(self, index: int) -> int:
        return self._storages.setdefault(index, index)

    def _shape(self, index: int) -> tuple[int, ...]:
        tensor = self._graph.tensors[index]
        signature = tensor.shapeSignature
        if signature is not None and any(size < 0 for size in signature):
            raise no_static_shape(self._name([index]), self._path)
        return tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()

    def _operand(self, index: int) -> Operand:
        return Operand(self._storage(index), self._shape(index), index in self._constants)


def _channels_first(operand: Operand) -> Operand:
    batch, *space, channels = operand.shape
    return operand._replace(shape=(batch, channels, *space))
