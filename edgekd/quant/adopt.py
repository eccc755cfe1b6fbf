"""A user's own torch.export program as a model: one image in, anything out, whatever its inputs are called.

Programs that went through `run_decompositions()` hold core operators (`convolution`, `addmm`, batch norms split from
their mode). They are written back as the layers they came from: quantiser, folding and converters know those.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgekd.errors import InputError
from edgekd.quant.program import read_program

aten = torch.ops.aten


class Adopted(nn.Module):
    """A program as a module in eval mode; `train()` leaves it there, because its mode is part of its graph."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.program = graph  # not `graph`: converters read that name of a module as its fx graph
        self.training = False

    def forward(self, image: Tensor) -> Any:
        """One image (1, channels, height, width) to whatever the program returns."""
        return self.program(image)

    def train(self, mode: bool = True) -> Adopted:
        return self


def adopt_program(source: Path | ExportedProgram) -> Adopted:
    """A `.pt2` file or a program with one image input as a model for `export_float` and `ptq`.

    Raises: InputError: not a program (or one that could run code), several inputs, an input that is no float image
        (1, channels, height, width), or sizes that are free.
    """
    where = source if isinstance(source, Path) else None
    program = read_program(source) if isinstance(source, Path) else source
    _check_image(program, where)
    graph = program.module(check_guards=False)
    _recompose(graph)
    return Adopted(graph)


def adopted_shape(source: Path | ExportedProgram) -> tuple[int, int, int]:
    """(channels, height, width) of the image a program takes. Raises: InputError: as `adopt_program`."""
    where = source if isinstance(source, Path) else None
    program = read_program(source) if isinstance(source, Path) else source
    return _check_image(program, where)


def _check_image(program: ExportedProgram, where: object) -> tuple[int, int, int]:
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        listed = ", ".join(str(name) for name in names) or "none"
        raise InputError(f"the program has {len(names)} inputs ({listed})", where=where, fix="it must take one image")
    node = next((n for n in program.graph.nodes if n.op == "placeholder" and n.name == names[0]), None)
    value = node.meta.get("val") if node is not None else None
    fix = "export it on one float32 image of shape (1, channels, height, width)"
    if not isinstance(value, Tensor) or value.ndim != 4 or value.dtype != torch.float32:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"input '{names[0]}' is {found}, not an image", where=where, fix=fix)
    batch, *sizes = value.shape
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(f"input '{names[0]}' has free sizes {[str(s) for s in sizes]}", where=where, fix=fix)
    if isinstance(batch, int) and batch != 1:
        raise InputError(f"the program is fixed to batches of {batch}", where=where, fix=fix)
    channels, height, width = (int(size) for size in sizes)
    if channels > 4:
        raise InputError(
            f"input '{names[0]}' has {channels} channels, not an image's 1 to 4", where=where, fix=f"{fix}, NCHW"
        )
    return channels, height, width


def _recompose(graph: fx.GraphModule) -> None:
    """Core operators back to layers, batch norms and dropouts to eval mode. In place."""
    rewrites: dict[object, Callable[[fx.GraphModule, fx.Node], None]] = {
        aten.convolution.default: _convolution,
        aten._native_batch_norm_legit_no_training.default: _batch_norm,
        aten.addmm.default: _linear,
        aten.batch_norm.default: _eval_norm,
        aten.dropout.default: _eval_dropout,
    }
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in rewrites:
            rewrites[node.target](graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _convolution(graph: fx.GraphModule, node: fx.Node) -> None:
    image, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    if len(cast(list[int], stride)) != 2:
        return
    if transposed:
        node.target = aten.conv_transpose2d.input
        node.args = (image, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        node.target = aten.conv2d.default
        node.args = (image, weight, bias, stride, padding, dilation, groups)


def _batch_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    image, weight, bias, mean, variance, momentum, eps = node.args
    with graph.graph.inserting_before(node):
        norm = graph.graph.call_function(
            aten.batch_norm.default, (image, weight, bias, mean, variance, False, momentum, eps, False)
        )
    for reader in list(node.users):
        if reader.target is operator.getitem and reader.args[1] == 0:
            norm.meta = dict(reader.meta)
            reader.replace_all_uses_with(norm)


def _linear(graph: fx.GraphModule, node: fx.Node) -> None:
    """addmm(bias, x, weight transposed) is a linear layer."""
    bias, image, turned = cast(tuple[fx.Node, ...], node.args[:3])
    order = turned.args[1:]
    turns = (turned.target, order) in (
        (aten.t.default, ()),
        (aten.permute.default, ([1, 0],)),
        (aten.transpose.int, (0, 1)),
    )
    if turns and not node.kwargs:
        node.target, node.args = aten.linear.default, (image, turned.args[0], bias)


def _eval_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    node.args = (*node.args[:5], False, *node.args[6:])


def _eval_dropout(graph: fx.GraphModule, node: fx.Node) -> None:
    node.args = (*node.args[:2], False)
