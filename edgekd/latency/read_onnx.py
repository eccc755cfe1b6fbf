"""An ONNX file as recorded calls: shapes inferred by onnx, constants folded by name, operators renamed to ATen's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import InputError
from edgekd.latency.record import Call, Operand, Recording, no_static_shape
from edgekd.profile.operators import DILATED, aten_names

_NAMES = aten_names("onnx")
_CONV_INPUTS = {"QLinearConv": (0, 3, 8)}
_MATRIX_INPUTS = {"QLinearMatMul": (0, 3), "QGemm": (0, 3, 6)}


def record_onnx(path: Path) -> Recording:
    """Calls of one run of an ONNX file at the shapes it declares. parameters: elements of its initializers.

    Raises: InputError: not an ONNX model, or a tensor that matters has no static shape.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise InputError(f"not an ONNX model ({str(error).strip().splitlines()[0]})", where=path) from error
    return _Reader(inferred.graph, path).recording()


class _Reader:
    def __init__(self, graph: Any, path: Path) -> None:
        self._graph, self._path = graph, path
        self._constants = {tensor.name for tensor in graph.initializer}
        self._shapes: dict[str, tuple[int, ...] | None] = {t.name: tuple(t.dims) for t in graph.initializer}
        for info in [*graph.value_info, *graph.output, *graph.input]:
            self._shapes.setdefault(info.name, _dims(info))
        self._storages: dict[str, int] = {}

    def recording(self) -> Recording:
        calls = tuple(call for node in self._graph.node for call in self._calls(node))
        inputs = tuple(self._operand(i.name) for i in self._graph.input if i.name not in self._constants)
        parameters = sum(math.prod(tensor.dims) for tensor in self._graph.initializer)
        return Recording(calls, inputs, parameters, frozenset(self._operators()), "onnx")

    def _operators(self) -> Iterator[str]:
        for node in self._graph.node:
            yield node.op_type
            gaps = next((list(a.ints) for a in node.attribute if a.name == "dilations"), [])
            if any(gap > 1 for gap in gaps):
                yield node.op_type + DILATED

    def _calls(self, node: Any) -> list[Call]:
        names = [name for name in node.input if name]
        op = _NAMES.get(node.op_type, node.op_type)
        if op == "free" or all(name in self._constants for name in names):
            self._constants.update(node.output)
            self._shapes.update({name: self._shapes.get(name) or () for name in node.output})
            return []
        if op in ("view", "slice", "split"):
            for name in node.output:
                self._storages[name] = self._storage(names[0])
            return []
        attributes = _attributes(node)
        reads = self._reads(node, op, attributes)
        return [Call(op, reads, (self._operand(node.output[0]),), attributes, node.name)]

    def _reads(self, node: Any, op: str, attributes: dict[str, Any]) -> tuple[Operand, ...]:
        if op == "convolution":
            picked = [node.input[i] for i in _CONV_INPUTS.get(node.op_type, (0, 1, 2)) if i < len(node.input)]
        elif op in ("addmm", "matmul"):
            picked = [node.input[i] for i in _MATRIX_INPUTS.get(node.op_type, (0, 1, 2)) if i < len(node.input)]
        else:
            picked = list(node.input)
        reads = [self._operand(name) for name in picked if name]
        if op == "addmm":  # ATen's order is bias, left, right
            left = reads[0]
            left = left._replace(shape=left.shape[::-1]) if attributes.get("transA") else left
            return (*reads[2:], left, reads[1])
        return tuple(reads)

    def _storage(self, name: str) -> int:
        return self._storages.setdefault(name, len(self._storages))

    def _operand(self, name: str) -> Operand:
        shape = self._shapes.get(name)
        if shape is None:
            raise no_static_shape(name, self._path)
        return Operand(self._storage(name), shape, name in self._constants)


def _dims(info: Any) -> tuple[int, ...] | None:
    """Static sizes of a value, or None. A symbolic first axis is not taken for a batch of one."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    return None if any(size <= 0 for size in sizes) else tuple(sizes)


def _attributes(node: Any) -> dict[str, Any]:
    """Attributes that counting asks for, by ATen's names."""
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    found: dict[str, Any] = {"groups": given.get("group", 1), "transposed": node.op_type == "ConvTranspose"}
    if "strides" in given:
        found["stride"] = list(given["strides"])
    if "kernel_shape" in given:
        found["kernel_size"] = list(given["kernel_shape"])
    return {**found, "transA": given.get("transA", 0)}
