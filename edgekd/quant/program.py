"""The exchange format between training and export: a torch.export program on disk (`.pt2`). Knows no quantiser.

A program takes one NCHW float32 tensor named `image` (batch 1) and returns one tensor `logits` (batch, classes).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

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

    Raises: InputError: no such file, not a program, or a program whose input and output are not `image` and `logits`.
    """
    if not path.is_file():
        raise InputError("no such program", where=path)
    if not zipfile.is_zipfile(path):
        raise InputError("not a torch.export program", where=path, fix="expected the .pt2 that edgekd wrote")
    program = load_plain_program(path)  # refuses an archive that could run code: a run directory may come from anywhere
    _check_signature(program, path)
    return program


def _check_signature(program: ExportedProgram, path: Path) -> None:
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    if inputs != (INPUT_NAME,) or len(outputs) != 1:
        raise InputError(
            f"a program with inputs {list(inputs)} and {len(outputs)} outputs", where=path, fix="expected one of each"
        )


def image_shape(program: ExportedProgram) -> tuple[int, ...]:
    """Shape (1, channels, height, width) of the program's input."""
    return tuple(int(size) for size in _value(program, INPUT_NAME).shape)


def num_classes(program: ExportedProgram) -> int:
    """Number of logits."""
    return int(_value(program, OUTPUT_NAME).shape[-1])


def _value(program: ExportedProgram, name: str) -> torch.Tensor:
    node = next(node for node in program.graph.nodes if node.name == name)
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise InputError(f"'{name}' is not a tensor")
    return value


def name_output(program: ExportedProgram, name: str = OUTPUT_NAME) -> ExportedProgram:
    """The same program with its only output renamed, so that every converter calls it `logits`. Changes it in place."""
    spec = next(s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT)
    node = next(node for node in program.graph.nodes if node.name == spec.arg.name)
    node._rename(name)
    spec.arg.name = node.name
    return program


def is_quantised(program: ExportedProgram) -> bool:
    """Whether any weight of the program is stored as int8."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    names = [s.target for s in program.graph_signature.input_specs if s.kind in kinds and s.target is not None]
    stored = {**program.state_dict, **program.constants}
    return any(isinstance(stored.get(name), torch.Tensor) and stored[name].dtype == torch.int8 for name in names)
