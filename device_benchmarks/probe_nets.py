"""Small networks that each strain one thing: arithmetic, memory, or the overhead of a kernel. ONNX, built by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import MissingExtraError

SCALE = 0.05


@dataclass(frozen=True)
class Probe:
    """A network: `layers` equal convolutions (kernel k, c channels, side x side px), or one matrix times a vector.

    work: multiply-adds of one inference; for `bandwidth`, bytes of weights that it reads.
    """

    name: str
    side: int
    channels: int
    kernel: int
    layers: int
    depthwise: bool = False
    int8: bool = False

    @property
    def work(self) -> int:
        """Of the convolutions, the stem that makes the channels included."""
        pixels, area = self.side**2, self.kernel**2
        per_layer = pixels * self.channels * area * (1 if self.depthwise else self.channels)
        return self.layers * per_layer + pixels * self.channels * 3


# More than one shape of each kind, since the best of them is the nearest to the peak.
DENSE = (Probe("dense", 28, 128, 3, 4), Probe("pointwise", 28, 512, 1, 4))
ORDINARY = Probe("ordinary", 56, 64, 3, 4)
DEPTHWISE = Probe("depthwise", 56, 128, 3, 8, depthwise=True)
SHORT_CHAIN, LONG_CHAIN = Probe("short chain", 4, 4, 1, 16), Probe("long chain", 4, 4, 1, 144)
FLOAT = (*DENSE, ORDINARY, DEPTHWISE, SHORT_CHAIN, LONG_CHAIN)
INT8 = tuple(Probe(f"{p.name} int8", p.side, p.channels, p.kernel, p.layers, int8=True) for p in DENSE)
VECTOR = 64 * 64


def write_probe(probe: Probe, path: Path) -> Path:
    """The network as `.onnx`: image [1, 3, side, side] -> its last feature map.

    Raises: MissingExtraError: the onnx package is not installed.
    """
    onnx = _onnx()
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    current = _entered("image", probe, nodes, constants)
    for number in range(-1, probe.layers):
        groups = probe.channels if probe.depthwise and number >= 0 else 1
        inputs, kernel = (3, 1) if number < 0 else (probe.channels // groups, probe.kernel)
        weight = rng.normal(0, 1 / np.sqrt(inputs * kernel**2), (probe.channels, inputs, kernel, kernel))
        options = {"pads": [kernel // 2] * 4, "group": groups}
        operand = _weight(f"w{number}", weight, probe, nodes, constants)
        nodes.append(onnx.helper.make_node("Conv", [current, operand], [f"c{number}"], **options))
        current = _entered(f"c{number}", probe, nodes, constants)
    shape = [1, probe.channels, probe.side, probe.side]
    return _saved(path, nodes, constants, (1, 3, probe.side, probe.side), (current, shape))


def write_bandwidth(path: Path, *, mib: int) -> tuple[Path, int]:
    """A matrix of `mib` times a vector: nearly all its time is reading the matrix; with its bytes."""
    onnx = _onnx()
    columns = mib * 2**20 // 4 // VECTOR
    matrix = np.full((VECTOR, columns), 1e-3, np.float32)
    flat = onnx.helper.make_node("Flatten", ["image"], ["flat"])
    product = onnx.helper.make_node("MatMul", ["flat", "matrix"], ["product"])
    _saved(path, [flat, product], {"matrix": matrix}, (1, 1, 64, 64), ("product", [1, columns]))
    return path, matrix.nbytes


def _entered(name: str, probe: Probe, nodes: list[Any], constants: dict[str, Any]) -> str:
    """A tensor as the next operator takes it: quantised and dequantised in an int8 network."""
    return _grid(name, probe, nodes, constants, np.uint8(128)) if probe.int8 else name


def _grid(name: str, probe: Probe, nodes: list[Any], constants: dict[str, Any], zero: Any) -> str:
    helper = _onnx().helper
    scale, point = f"{name}_s", f"{name}_z"
    constants |= {scale: np.float32(SCALE), point: zero}
    nodes.append(helper.make_node("QuantizeLinear", [name, scale, point], [f"{name}_q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, point], [f"{name}_d"]))
    return f"{name}_d"


def _weight(name: str, value: Any, probe: Probe, nodes: list[Any], constants: dict[str, Any]) -> str:
    if not probe.int8:
        constants[name] = value.astype(np.float32)
        return name
    scale = np.float32(np.abs(value).max() / 63)  # 7 bits, which no processor saturates on
    constants |= {name: np.round(value / scale).astype(np.int8), f"{name}_s": scale, f"{name}_z": np.int8(0)}
    nodes.append(_onnx().helper.make_node("DequantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_d"]))
    return f"{name}_d"


def _saved(
    path: Path,
    nodes: Sequence[Any],
    constants: dict[str, Any],
    image: tuple[int, ...],
    output: tuple[str, list[int]],
) -> Path:
    onnx = _onnx()
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "probe",
        [onnx.helper.make_tensor_value_info("image", floats, list(image))],
        [onnx.helper.make_tensor_value_info(output[0], floats, output[1])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return path


def _onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "onnxruntime") from error
    return onnx
