"""A `Net` as ONNX bytes, for ONNX Runtime and OpenVINO: fp32, or int8 with a quantise-dequantise pair per value.

Written node by node, in milliseconds, in the form that `edgekd.export` gives these networks: activations uint8 per
tensor, weights int8 per channel, biases int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.device_benchmarks.block_ops import Net, Op

OPSET = 18
_SCALE = 0.05  # of every activation: a grid that loses nothing of the timing


def onnx_bytes(net: Net, precision: str) -> bytes:
    """The model file's content. precision: fp32 or int8."""
    from onnx import TensorProto, helper

    writer = _Writer(int8=precision == "int8")
    values = [writer.on_grid("image")]
    for op in net.ops:
        values.append(writer.write(op, [values[number] for number in op.inputs]))
    image = [1, net.in_channels, net.image_size, net.image_size]
    last = net.ops[-1]
    out = [1, last.channels] if last.kind == "linear" else [1, last.channels, last.size, last.size]
    graph = helper.make_graph(
        writer.nodes,
        "block",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, out)],
        writer.stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    content: bytes = model.SerializeToString()
    return content


class _Writer:
    def __init__(self, *, int8: bool) -> None:
        self.int8 = int8
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self._rng = np.random.default_rng(0)

    def write(self, op: Op, inputs: list[str]) -> str:
        made = {"conv": self._conv, "linear": self._linear, "gate": self._gate}.get(op.kind)
        if made is not None:
            value = made(op, inputs)
        elif op.kind == "add":
            value = self._node("Add", inputs)
        else:
            value = self._node("GlobalAveragePool", inputs)
        return self.on_grid(self._activated(value, op.activation))

    def on_grid(self, value: str) -> str:
        """A value after its quantise-dequantise pair; itself in fp32."""
        if not self.int8:
            return value
        grid = [self._store(np.float32(_SCALE)), self._store(np.uint8(0 if value != "image" else 128))]
        return self._node("DequantizeLinear", [self._node("QuantizeLinear", [value, *grid]), *grid])

    def _conv(self, op: Op, inputs: list[str]) -> str:
        groups = op.in_channels if op.depthwise else 1
        shape = (op.channels, op.in_channels // groups, op.kernel, op.kernel)
        pads = [op.kernel // 2] * 4
        return self._node(
            "Conv",
            [*inputs, *self._weights(shape)],
            kernel_shape=[op.kernel] * 2,
            strides=[op.stride] * 2,
            pads=pads,
            group=groups,
        )

    def _linear(self, op: Op, inputs: list[str]) -> str:
        flat = self._node("Flatten", inputs)
        return self._node("Gemm", [flat, *self._weights((op.channels, op.in_channels))], transB=1)

    def _gate(self, op: Op, inputs: list[str]) -> str:
        gate = self.on_grid(self._node("HardSigmoid", inputs[1:], alpha=1 / 6, beta=0.5))
        return self._node("Mul", [inputs[0], gate])

    def _activated(self, value: str, activation: str) -> str:
        if activation == "relu6":
            return self._node("Clip", [value, self._store(np.float32(0)), self._store(np.float32(6))])
        names = {"relu": "Relu", "hardswish": "HardSwish"}
        return self._node(names[activation], [value]) if activation else value

    def _weights(self, shape: tuple[int, ...]) -> list[str]:
        """Kernel and bias, behind their own dequantisation in int8."""
        fan_in = float(np.prod(shape[1:]))
        if not self.int8:
            values = self._rng.standard_normal(shape, dtype=np.float32) / np.float32(fan_in**0.5)
            return [self._store(values), self._store(np.zeros(shape[0], np.float32))]
        codes = self._rng.integers(-127, 128, shape, dtype=np.int8)
        scale = np.full(shape[0], 1 / (74 * fan_in**0.5), np.float32)
        kernel = [self._store(codes), self._store(scale), self._store(np.zeros(shape[0], np.int8))]
        bias = [self._store(np.zeros(shape[0], np.int32)), self._store(scale * np.float32(_SCALE))]
        return [
            self._node("DequantizeLinear", kernel, axis=0),
            self._node("DequantizeLinear", [*bias, self._store(np.zeros(shape[0], np.int32))], axis=0),
        ]

    def _store(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name
