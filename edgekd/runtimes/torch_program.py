"""The torch.export program itself (`.pt2`), run by torch: the null target, and the reference that parity is against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from edgekd.artifact import Artifact, Layout, TensorSpec
from edgekd.quant.program import load_program
from edgekd.runtimes.macs import conv_macs, matmul_macs
from edgekd.runtimes.session import (
    ComputeKind,
    ComputeOp,
    Executed,
    FloatArray,
    Images,
    OpReport,
    arranged,
    every_output,
    first_output,
    image_input,
)

OPTIONS: tuple[str, ...] = ()
_COMPUTE: dict[str, ComputeKind] = {
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "convolution": "conv",
    "conv_transpose1d": "conv",
    "conv_transpose2d": "conv",
    "conv_transpose3d": "conv",
    "linear": "linear",
    "addmm": "linear",
    "matmul": "linear",
    "mm": "linear",
    "bmm": "linear",
}


def open_session(artifact: Artifact, *, threads: int, options: Mapping[str, Any]) -> TorchSession:
    """Raises: InputError: not a program that edgekd wrote."""
    program = load_program(artifact.path)
    torch.set_num_threads(threads)  # process-wide: torch has no per-module setting
    return TorchSession(artifact, program.module())


def open_program(path: Path, *, threads: int) -> TorchSession:
    """A session on a bare program file, the reference of parity. Raises: InputError: not a program of edgekd's."""
    program = load_program(path)
    inputs, outputs = file_tensors(program)
    draft = Artifact(
        target="null",
        precision="fp32",
        path=path,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        size_bytes=0,
        sha256="",
    )
    torch.set_num_threads(threads)
    return TorchSession(draft, program.module())


class TorchSession:
    """`invoke` is one call of the exported module in inference mode. int8 programs are emulated in float arithmetic."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, artifact: Artifact, module: torch.nn.Module) -> None:
        self._path, self._module, self._input = artifact.path, module, image_input(artifact)
        self._outputs = artifact.outputs

    def feed(self, images: Images) -> torch.Tensor:
        return torch.from_numpy(arranged(images, self._input, self._path).copy())

    def invoke(self, fed: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            return tree_leaves(self._module(fed))

    def read(self, raw: list[torch.Tensor]) -> FloatArray:
        return first_output([raw[0].numpy()], self._outputs)

    def read_all(self, raw: list[torch.Tensor]) -> dict[str, FloatArray]:
        return every_output([output.numpy() for output in raw], self._outputs)

    def close(self) -> None:
        del self._module


def op_report(artifact: Artifact) -> OpReport:
    """From the program's graph: a compute operator is int8 when a dequantise feeds both its input and its weight."""
    program = load_program(artifact.path)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return OpReport.of(
        Counter(_name(node) for node in nodes),
        [_compute_op(node) for node in nodes if _name(node) in _COMPUTE],
        source="torch.export graph",
        fp16_compute=any(_is_half(node) for node in nodes if _name(node) in _COMPUTE),
        fp16_weights=any(tensor.dtype == torch.float16 for tensor in program.state_dict.values()),
    )


def _name(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _compute_op(node: torch.fx.Node) -> ComputeOp:
    operands = [arg for arg in node.args if isinstance(arg, torch.fx.Node)]
    pair = operands[1:] if _name(node) == "addmm" else operands[:2]
    int8 = len(pair) == 2 and all(_from_dequantise(operand) for operand in pair)
    return ComputeOp(name=node.name, kind=_COMPUTE[_name(node)], op_type=_name(node), int8=int8, macs=_macs(node, pair))


def _macs(node: torch.fx.Node, pair: list[torch.fx.Node]) -> int:
    data, weight, output = (tuple(int(size) for size in n.meta["val"].shape) for n in (*pair[:2], node))
    if _COMPUTE[_name(node)] == "linear":
        return matmul_macs(output, data)
    return conv_macs(data if _is_transposed(node) else output, weight)


def _is_transposed(node: torch.fx.Node) -> bool:
    return "transpose" in _name(node) or (_name(node) == "convolution" and bool(node.args[6]))


def _is_half(node: torch.fx.Node) -> bool:
    return getattr(node.meta.get("val"), "dtype", None) == torch.float16


def _from_dequantise(node: torch.fx.Node) -> bool:
    while _name(node) in ("permute", "t", "transpose") and isinstance(node.args[0], torch.fx.Node):
        node = node.args[0]
    return _name(node).startswith("dequantize")


def file_tensors(program: torch.export.ExportedProgram) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The image input and the outputs of a program; a free dimension is -1."""
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = [_spec(nodes[str(name)], "NCHW") for name in signature.user_inputs]
    outputs = [nodes[str(name)] for name in signature.user_outputs]
    return inputs, [_spec(node, "NC" if node.meta["val"].ndim == 2 else "ANY") for node in outputs]


def _spec(node: torch.fx.Node, layout: Layout) -> TensorSpec:
    value = node.meta["val"]
    shape = tuple(int(size) if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=str(value.dtype).removeprefix("torch."), layout=layout)
