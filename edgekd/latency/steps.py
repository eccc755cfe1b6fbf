"""Recorded calls as steps with values: views dissolved, in-place writes renamed, multiply-adds counted.

A step is what `edgekd.latency.fuse` merges. Values are identities: who reads what decides what may be fused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgekd.latency.cost import OpCost, OpKind
from edgekd.latency.record import Call, Operand, Recording
from edgekd.latency.vocabulary import POINTWISE, Role, role_of

Value = tuple[int, int]  # identity, elements


class Shape(NamedTuple):
    """Of a whole convolution, product or pool; see `edgekd.latency.cost.OpCost`."""

    taps: int = 1
    stride: int = 1
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0


_PLAIN = Shape()
_RECURRENT = ("mkldnn_rnn_layer", "lstm", "gru")


@dataclass(frozen=True)
class Step:
    """One call that does work. weights: constant elements it reads. in_place: its result takes its operand's memory."""

    role: Role
    kind: OpKind
    op: str
    where: str
    macs: int
    reads: tuple[Value, ...]
    write: Value
    weights: int
    shape: Shape = _PLAIN
    in_place: bool = False
    has_bias: bool = False
    costly: int = 0
    joined: int = 0

    @property
    def pointwise(self) -> bool:
        """Whether every result depends on the operands' elements at its own place only."""
        return self.role in POINTWISE

    @property
    def contracts(self) -> bool:
        """Whether it is a convolution or a product of matrices."""
        return self.role in ("contraction", "convolution")

    def cost(self) -> OpCost:
        """The step as plain data."""
        return OpCost(
            kind=self.kind,
            name=self.where or self.op,
            op=self.op,
            macs=self.macs,
            read_elements=sum(elements for _, elements in self.reads),
            write_elements=self.write[1],
            weight_elements=self.weights,
            costly_elements=self.costly,
            joined=self.joined,
            **self.shape._asdict(),
        )


def steps_of(recording: Recording) -> tuple[list[Step], tuple[Value, ...]]:
    """Steps in execution order, and the values that came from outside."""
    current: dict[int, int] = {}  # storage -> value that it holds now
    fresh = iter(range(1 << 60))

    def value(operand: Operand) -> Value:
        if operand.storage not in current:
            current[operand.storage] = next(fresh)
        return current[operand.storage], math.prod(operand.shape)

    inputs = tuple(value(operand) for operand in recording.inputs)
    steps = []
    for call in recording.calls:
        role = role_of(call.op)
        if call.view or call.folded or role == "free" or not call.writes:
            continue
        variables = [operand for operand in call.reads if not operand.constant]
        reads = tuple(dict(value(operand) for operand in variables).items())
        out = call.writes[0]
        if role == "alias" and reads:
            current[out.storage] = reads[0][0]
            continue
        in_place = out.storage in {operand.storage for operand in variables}
        current[out.storage] = next(fresh)
        steps.append(_step(role, call, reads, (current[out.storage], math.prod(out.shape)), in_place=in_place))
    return steps, inputs


def _step(role: Role, call: Call, reads: tuple[Value, ...], write: Value, *, in_place: bool) -> Step:
    kind, macs, shape = _what(role, call)
    constants = [operand for operand in call.reads if operand.constant]
    # A folded batch norm leaves one bias per channel; its scale goes into the weights before it.
    weights = call.writes[0].shape[1] if role == "batch_norm" else sum(math.prod(c.shape) for c in constants)
    return Step(
        role=role,
        kind=kind,
        op=call.op,
        where=call.where,
        macs=macs,
        reads=reads,
        write=write,
        weights=weights,
        shape=shape,
        in_place=in_place,
        has_bias=len(constants) > 1,
        costly=write[1] if role in ("costly", "norm", "softmax") else 0,
    )


def _what(role: Role, call: Call) -> tuple[OpKind, int, Shape]:
    """Kind, multiply-adds and shape of a call."""
    if role == "convolution":
        return _convolution(call)
    if role == "contraction":
        return _product(call)
    if role == "pool":
        return "pool", 0, _window(call.attributes)
    if role == "reduce":
        return "pool", 0, Shape()
    two = call.op == "add" and sum(not operand.constant for operand in call.reads) == 2
    return ("add" if two else "other"), 0, Shape()


def _product(call: Call) -> tuple[OpKind, int, Shape]:
    out = call.writes[0].shape
    if "scaled_dot_product" in call.op:
        query, key, value = (operand.shape for operand in call.reads[:3])
        macs = math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
        return "linear", macs, Shape(in_channels=query[-1], out_channels=value[-1])
    if call.op in _RECURRENT:  # every token meets every weight matrix once
        tokens, inner = math.prod(call.reads[0].shape[:-1]), call.reads[0].shape[-1]
        weights = sum(
            math.prod(operand.shape) for operand in call.reads[1:] if operand.constant and len(operand.shape) > 1
        )
        return "linear", tokens * weights, Shape(in_channels=inner, out_channels=out[-1] if out else 0)
    matrices = [operand.shape for operand in call.reads if operand.shape]
    inner = matrices[-2][-1] if len(matrices) > 1 else 0
    return "linear", math.prod(out) * inner, Shape(in_channels=inner, out_channels=out[-1] if out else 0)


def _window(attributes: dict[str, Any]) -> Shape:
    kernel = attributes.get("kernel_size") or [1]
    stride = attributes.get("stride") or kernel
    return Shape(taps=max(1, math.prod(kernel if len(kernel) > 1 else kernel * 2)), stride=max(1, stride[0]))


def _convolution(call: Call) -> tuple[OpKind, int, Shape]:
    """weight: (out, in / groups, kh, kw), or (in, out / groups, kh, kw) when transposed."""
    image, weight, out = call.reads[0].shape, call.reads[1].shape, call.writes[0].shape
    groups, transposed = int(call.attributes.get("groups", 1)), bool(call.attributes.get("transposed", False))
    macs = math.prod(image if transposed else out) * math.prod(weight[1:])
    depthwise = weight[1] == 1 and weight[0] > 1 and groups > 1
    stride = call.attributes.get("stride") or [1]
    shape = Shape(math.prod(weight[2:]), max(1, int(stride[0])), groups, image[1], out[1])
    return ("depthwise" if depthwise else "conv"), macs, shape


def folded_work(recording: Recording) -> tuple[int, int]:
    """Multiply-adds and elements moved by calls on weights alone, which a compiler repeats in every pass."""
    macs = elements = 0
    for call in recording.calls:
        role = role_of(call.op)
        if call.folded and not call.view and role not in ("free", "alias") and call.reads:
            macs += _what(role, call)[1]
            elements += sum(math.prod(operand.shape) for operand in (*call.reads, *call.writes))
    return macs, elements


def readers(steps: Iterable[Step]) -> dict[int, int]:
    """How many steps read each value."""
    counts: dict[int, int] = {}
    for step in steps:
        for key, _ in step.reads:
            counts[key] = counts.get(key, 0) + 1
    return counts
