"""A small interpreter of Core ML's MIL programs, in torch: what the file computes, not how an Apple chip computes it.

Constants are resolved once, at load; a step of `run` looks up the few tensors that vary and calls one function of
`mil_ops`. Arithmetic within an operator is float32; what it gives is rounded to fp16 where the program says fp16, so
that rounding and overflow between operators are the file's, but fp16 accumulation inside one is not imitated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edgekd.errors import InputError
from edgekd.runtimes.mil_ops import OPS


class _Variable(NamedTuple):
    """A value that varies from run to run, by its name in the program."""

    name: str


class _Step(NamedTuple):
    apply: Callable[[Mapping[str, Any]], Any]
    inputs: dict[str, Any]  # a _Variable, a list that may hold some, or a constant
    outputs: tuple[str, ...]
    halves: tuple[bool, ...]  # which outputs are fp16
    label: str


class MilProgram:
    """A function of a MIL program, ready to run.

    function: coremltools' `Function`, as its milproto loader returns it. where: what errors name.
    Raises: InputError: it has several inputs, or operators that are not interpreted (all are named).
    """

    def __init__(self, function: Any, *, where: Path) -> None:
        if len(function.inputs) != 1:
            raise InputError(f"expected one input, it has {', '.join(function.inputs)}", where=where)
        _refuse_unknown(function, where)
        self._where = where
        self._input = next(iter(function.inputs))
        self._outputs = tuple(variable.name for variable in function.outputs)
        self._constants: dict[str, Any] = {}
        self._steps: list[_Step] = []
        for op in function.operations:
            self._add(op)

    def _add(self, op: Any) -> None:
        if op.op_type == "const":
            self._constants[op.outputs[0].name] = _constant(op.outputs[0].val)
        elif op.op_type.startswith("constexpr_"):
            # coremltools' own decompression: the reference for how stored integers become weights
            self._constants[op.outputs[0].name] = _constant(op.materialized_val_inference())
        else:
            inputs = {key: self._resolve(value) for key, value in op.inputs.items() if value is not None}
            outputs = tuple(variable.name for variable in op.outputs)
            halves = tuple(_is_half(variable) for variable in op.outputs)
            self._steps.append(_Step(OPS[op.op_type], inputs, outputs, halves, f"{op.op_type} '{op.name}'"))

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._resolve(item) for item in value]
        if value.name in self._constants:
            return self._constants[value.name]
        return _constant(value.val) if value.val is not None and value.op is None else _Variable(value.name)

    def run(self, image: torch.Tensor, *, outputs: Sequence[str]) -> list[torch.Tensor]:
        """One inference: image as the program's input takes it, float32 -> the named outputs.

        Raises: InputError: no such output, or an operator fails on the values it gets (it is named).
        """
        for name in outputs:
            if name not in self._outputs:
                raise InputError(f"no output '{name}', it has {', '.join(self._outputs)}", where=self._where)
        values: dict[str, Any] = {self._input: image}
        with torch.inference_mode():
            for step in self._steps:
                self._advance(step, values)
        return [self._constants[name] if name in self._constants else values[name].float() for name in outputs]

    def _advance(self, step: _Step, values: dict[str, Any]) -> None:
        try:
            result = step.apply({key: _bound(value, values) for key, value in step.inputs.items()})
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise InputError(f"interpreting {step.label} failed ({error})", where=self._where) from error
        results = result if isinstance(result, tuple) else (result,)
        for name, half, value in zip(step.outputs, step.halves, results, strict=False):
            values[name] = value.half().float() if half else value


def _refuse_unknown(function: Any, where: Path) -> None:
    kinds = {op.op_type for op in function.operations}
    unknown = sorted(
        kind for kind in kinds if kind not in OPS and kind != "const" and not kind.startswith("constexpr_")
    )
    if unknown:
        fix = "its numerics can only be checked on a Mac"
        raise InputError(f"the MIL interpreter does not know {', '.join(unknown)}", where=where, fix=fix)


def _is_half(variable: Any) -> bool:
    return str(getattr(variable.dtype, "__name__", "")) == "fp16"


def _constant(value: Any) -> Any:
    """Arrays of numbers to tensors (floats as float32), everything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, dtype=np.float32 if value.dtype.kind == "f" else value.dtype))
    return value


def _bound(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, _Variable):
        return values[value.name]
    if isinstance(value, list):
        return [_bound(item, values) for item in value]
    return value
