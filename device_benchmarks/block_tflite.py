"""A `Net` as TFLite bytes, fp32 or int8, written through LiteRT's own schema in milliseconds. NHWC, padding SAME."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.device_benchmarks.block_ops import Net, Op

_SCALE = 0.05
# The versions of the builtin operators that take int8.
_INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MUL": 2, "MEAN": 2}
_FUSED = {"": "NONE", "relu": "RELU", "relu6": "RELU6", "hardswish": "NONE"}


def tflite_bytes(net: Net, precision: str) -> bytes:
    """The model file's content. precision: fp32 or int8 (then input and output are int8 too)."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    writer = _Writer(schema, int8=precision == "int8")
    values = [writer.value([1, net.image_size, net.image_size, net.in_channels])]
    for op in net.ops:
        values.append(writer.write(op, [values[number] for number in op.inputs]))
    graph = writer.graph
    graph.inputs, graph.outputs = [values[0]], [values[-1]]
    model = schema.ModelT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], writer.buffers, writer.codes
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Writer:
    def __init__(self, schema: Any, *, int8: bool) -> None:
        self.schema, self.int8 = schema, int8
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.buffers: list[Any] = [schema.BufferT()]
        self.codes: list[Any] = []
        self._code_of: dict[str, int] = {}
        self._rng = np.random.default_rng(0)

    def write(self, op: Op, inputs: list[int]) -> int:
        shape = [1, op.channels] if op.kind == "linear" else [1, op.size, op.size, op.channels]
        if op.kind == "conv":
            out = self._conv(op, inputs, shape)
        elif op.kind == "linear":
            out = self._linear(op, inputs, shape)
        elif op.kind == "gate":
            out = self._gate(op, inputs, shape)
        elif op.kind == "add":
            options = self.schema.AddOptionsT()
            options.fusedActivationFunction = self._fused(op)
            out = self._operator("ADD", inputs, self.value(shape), options, "AddOptions")
        else:
            options = self.schema.ReducerOptionsT()
            options.keepDims = True
            axes = self._constant(np.array([1, 2], np.int32))
            out = self._operator("MEAN", [*inputs, axes], self.value(shape), options, "ReducerOptions")
        if op.activation == "hardswish":
            out = self._operator("HARD_SWISH", [out], self.value(shape), None, "HardSwishOptions")
        return out

    def value(self, shape: list[int]) -> int:
        """An activation."""
        kind = "INT8" if self.int8 else "FLOAT32"
        return self._tensor(shape, kind, 0, [_SCALE], [0] if self.int8 else None)

    def _conv(self, op: Op, inputs: list[int], shape: list[int]) -> int:
        if op.depthwise:
            kernel = (1, op.kernel, op.kernel, op.channels)
            options, name = self.schema.DepthwiseConv2DOptionsT(), "DEPTHWISE_CONV_2D"
            options.depthMultiplier = 1
        else:
            kernel = (op.channels, op.kernel, op.kernel, op.in_channels)
            options, name = self.schema.Conv2DOptionsT(), "CONV_2D"
        options.padding = self.schema.Padding.SAME
        options.strideH = options.strideW = op.stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = self._fused(op)
        weights = self._weights(kernel, 3 if op.depthwise else 0)
        table = "DepthwiseConv2DOptions" if op.depthwise else "Conv2DOptions"
        return self._operator(name, [*inputs, *weights], self.value(shape), options, table)

    def _linear(self, op: Op, inputs: list[int], shape: list[int]) -> int:
        options = self.schema.FullyConnectedOptionsT()
        weights = self._weights((op.channels, op.in_channels), 0)
        out = self.value(shape)
        return self._operator("FULLY_CONNECTED", [*inputs, *weights], out, options, "FullyConnectedOptions")

    def _gate(self, op: Op, inputs: list[int], shape: list[int]) -> int:
        """Hard sigmoid as the exporter writes it: (x + 3) capped at 6, times a sixth."""
        small = [1, 1, 1, op.channels]
        add, mul = self.schema.AddOptionsT(), self.schema.MulOptionsT()
        add.fusedActivationFunction = self.schema.ActivationFunctionType.RELU6
        three, sixth = self._constant_value(3.0), self._constant_value(1 / 6)
        shifted = self._operator("ADD", [inputs[1], three], self.value(small), add, "AddOptions")
        gate = self._operator("MUL", [shifted, sixth], self.value(small), mul, "MulOptions")
        return self._operator("MUL", [inputs[0], gate], self.value(shape), self.schema.MulOptionsT(), "MulOptions")

    def _constant_value(self, number: float) -> int:
        if not self.int8:
            return self._constant(np.array([number], np.float32))
        buffer = self._buffer(np.array([100], np.int8))
        return self._tensor([1], "INT8", buffer, [number / 100], [0])

    def _weights(self, shape: tuple[int, ...], axis: int) -> list[int]:
        channels = shape[axis]
        if not self.int8:
            values = self._rng.standard_normal(shape, dtype=np.float32) / np.float32((np.prod(shape) / channels) ** 0.5)
            return [self._constant(values), self._constant(np.zeros(channels, np.float32))]
        fan_in = float(np.prod(shape)) / channels
        scale = [1 / (74 * fan_in**0.5)] * channels
        codes = self._rng.integers(-127, 128, shape, dtype=np.int8)
        kernel = self._tensor(list(shape), "INT8", self._buffer(codes), scale, [0] * channels, axis)
        bias = self._buffer(np.zeros(channels, np.int32))
        return [kernel, self._tensor([channels], "INT32", bias, [s * _SCALE for s in scale], [0] * channels)]

    def _fused(self, op: Op) -> Any:
        return getattr(self.schema.ActivationFunctionType, _FUSED[op.activation])

    def _constant(self, array: Any) -> int:
        kind = "INT32" if array.dtype == np.int32 else "FLOAT32"
        return self._tensor(list(array.shape), kind, self._buffer(array), None, None)

    def _buffer(self, array: Any) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _tensor(
        self, shape: list[int], kind: str, buffer: int, scale: list[float] | None, zero: list[int] | None, axis: int = 0
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.buffer = shape, buffer
        tensor.type = getattr(self.schema.TensorType, kind)
        tensor.name = f"t{len(self.graph.tensors)}".encode()
        if zero is not None:
            grid = self.schema.QuantizationParametersT()
            grid.scale, grid.zeroPoint, grid.quantizedDimension = scale, zero, axis
            tensor.quantization = grid
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _operator(self, name: str, inputs: list[int], out: int, options: Any, table: str) -> int:
        if name not in self._code_of:
            code = self.schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, name)
            code.version = _INT8_VERSIONS.get(name, 1) if self.int8 else 1
            self._code_of[name] = len(self.codes)
            self.codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._code_of[name], inputs, [out]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
        self.graph.operators.append(operator)
        return out
