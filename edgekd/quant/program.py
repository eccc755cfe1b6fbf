"""The exchange format between training and export: a torch.export program on disk (`.pt2`). Knows no quantiser.

A program takes one NCHW float32 tensor named `image` (batch 1) and returns one tensor `logits`, or several under the
names of the model's own outputs; the first is what is distilled and, where it is (batch, classes), classified.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

# Imported for its side effect: it registers the `quantized_decomposed` operators that an int8 program is made of;
# without them torch.export.load fails on the first q/dq node.
from torch.ao.quantization.fx import _decomposed as quantized_decomposed_operators
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from edgekd.errors import InputError
from edgekd.files import write_whole
from edgekd.teachers.pt2 import load_program as load_plain_program

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
OPERATORS = quantized_decomposed_operators.quantized_decomposed_lib


def save_program(program: ExportedProgram, path: Path) -> Path:
    """Write a program as `.pt2`, whole or not at all; the same program gives the same outputs after `load_program`.

    Raises: InputError: the name does not end in .pt2, or the disk is full.
    """
    if path.suffix != ".pt2":
        raise InputError("a program's file name ends in .pt2", where=path)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return write_whole(path, lambda temporary: _write_bytes(temporary, buffer))


def _write_bytes(path: Path, buffer: io.BytesIO) -> None:
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path) -> ExportedProgram:
    """Read a program written by `save_program`, q/dq operators registered first.

    Raises: InputError: no such file, not a program, or a program whose one input is not `image`.
    """
    program = read_program(path)
    _check_signature(program, path)
    return program


def read_program(path: Path) -> ExportedProgram:
    """Read any torch.export program; its inputs and outputs may be called anything (see `adopt_program`).

    Raises: InputError: no such file, not a program, or a program that could run code.
    """
    if not path.is_file():
        raise InputError("no such program", where=path)
    if not zipfile.is_zipfile(path):
        raise InputError("not a torch.export program", where=path, fix="expected a .pt2")
    return load_plain_program(path)  # refuses an archive that could run code: a run directory may come from anywhere


def _check_signature(program: ExportedProgram, path: Path) -> None:
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    if inputs != (INPUT_NAME,) or not outputs:
        found = f"a program with inputs {list(inputs)} and {len(outputs)} outputs"
        raise InputError(found, where=path, fix=f"expected one input '{INPUT_NAME}'")
    free = [str(size) for size in _value(program, INPUT_NAME).shape if not isinstance(size, int)]
    if free:
        raise InputError(f"a program with free sizes {free}", where=path, fix="export it with a fixed image size")


def image_shape(program: ExportedProgram) -> tuple[int, ...]:
    """Shape (1, channels, height, width) of the program's input."""
    return tuple(int(size) for size in _value(program, INPUT_NAME).shape)


def output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names of the outputs in order: `logits` where there is one, the names of the model's own outputs otherwise."""
    return tuple(str(name) for name in program.graph_signature.user_outputs)


def output_shapes(program: ExportedProgram) -> tuple[tuple[int, ...], ...]:
    """Shape of each output, in the order of `output_names`."""
    return tuple(tuple(int(size) for size in _value(program, name).shape) for name in output_names(program))


def num_classes(program: ExportedProgram) -> int:
    """Number of logits. Raises: InputError: the first output is not (batch, classes)."""
    shape = output_shapes(program)[0]
    if len(shape) != 2:
        raise InputError(f"the first output has shape {list(shape)}", fix="a classifier's is (1, classes)")
    return shape[-1]


def _value(program: ExportedProgram, name: str) -> torch.Tensor:
    node = next(node for node in program.graph.nodes if node.name == name)
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise InputError(f"'{name}' is not a tensor")
    return value


def name_outputs(program: ExportedProgram, names: Sequence[str]) -> ExportedProgram:
    """The same program with its outputs renamed, so that every converter calls them alike. Changes it in place.

    An output that is an input, a stored tensor or another output gets a clone of its own: a name belongs to one value.
    """
    specs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    nodes = _own_nodes(program)
    for index, node in enumerate(nodes):
        node._rename(f"edgekd_output_{index}")
    taken = {node.name: node for node in program.graph.nodes}
    for name, node, spec in zip(names, nodes, specs, strict=True):
        if name in taken and taken[name].op == "call_function":
            taken[name]._rename(f"{name}_operator")
        node._rename(name)
        spec.arg.name = node.name
    return program


def _own_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """The node of each user output, cloned where it is a placeholder or stands for an earlier output already."""
    output = program.graph.output_node()
    values = list(cast(Sequence[torch.fx.Node], output.args[0]))
    kinds = [s.kind for s in program.graph_signature.output_specs]
    for index, (node, kind) in enumerate(zip(values, kinds, strict=True)):
        if kind is OutputKind.USER_OUTPUT and (node.op == "placeholder" or node in values[:index]):
            with program.graph.inserting_before(output):
                values[index] = program.graph.call_function(torch.ops.aten.clone.default, (node,))
            values[index].meta = dict(node.meta)
    output.args = (tuple(values),)
    program.graph_module.recompile()
    return [node for node, kind in zip(values, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def is_quantised(program: ExportedProgram) -> bool:
    """Whether any weight of the program is stored as int8."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    names = [s.target for s in program.graph_signature.input_specs if s.kind in kinds and s.target is not None]
    stored = {**program.state_dict, **program.constants}
    return any(isinstance(stored.get(name), torch.Tensor) and stored[name].dtype == torch.int8 for name in names)
