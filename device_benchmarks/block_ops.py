"""Parts of students as a handful of operators, the same for every writer of model files. Pure; no vendor import.

Only shapes matter to a block table, so weights are random: a convolution takes as long whatever its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from edgekd.errors import InputError
from edgekd.students import Part

Kind = Literal["conv", "add", "mean", "linear", "gate"]
LEAD_CHANNELS = 8  # of a sandwich's input, from which a 1x1 convolution makes the channels that the part takes


class Op(NamedTuple):
    """One operator. inputs: numbers of earlier values (0 is the image). groups: the input channels, if depthwise.

    kind gate: values times hard sigmoid of the second input. activation: "" for none. channels, size: of the result.
    """

    kind: Kind
    inputs: tuple[int, ...]
    in_channels: int
    channels: int
    size: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: str = ""


class Net(NamedTuple):
    """Operators in order; value n + 1 is the result of operator n, and the last is the output."""

    in_channels: int
    image_size: int
    ops: tuple[Op, ...]


class _Builder:
    def __init__(self, channels: int, size: int) -> None:
        self.in_channels, self.image_size = channels, size
        self.ops: list[Op] = []
        self.value, self.channels, self.size = 0, channels, size

    def conv(self, out: int, kernel: int, *, stride: int = 1, depthwise: bool = False, activation: str = "") -> None:
        size = -(-self.size // stride)
        self._push(Op("conv", (self.value,), self.channels, out, size, kernel, stride, depthwise, activation))

    def add(self, other: int, activation: str = "") -> None:
        self._push(Op("add", (self.value, other), self.channels, self.channels, self.size, activation=activation))

    def mean(self) -> None:
        self._push(Op("mean", (self.value,), self.channels, self.channels, 1))

    def linear(self, classes: int) -> None:
        self._push(Op("linear", (self.value,), self.channels, classes, 1))

    def gate(self) -> None:
        kept, channels, size = self.value, self.channels, self.size
        self.mean()
        self.conv(max(8, channels // 4), 1, activation="relu")
        self.conv(channels, 1)
        self._push(Op("gate", (kept, self.value), channels, channels, size))

    def back_to(self, value: int, channels: int, size: int) -> None:
        self.value, self.channels, self.size = value, channels, size

    def _push(self, op: Op) -> None:
        self.ops.append(op)
        self.value, self.channels, self.size = len(self.ops), op.channels, op.size

    def net(self) -> Net:
        return Net(self.in_channels, self.image_size, tuple(self.ops))


def has_operators(part: Part) -> bool:
    """Whether a part can be written: attention is not (its form differs from runtime to runtime)."""
    return part.block != "attention"


def whole_net(parts: Sequence[Part]) -> Net:
    """A student. Raises: InputError: a part cannot be written."""
    builder = _Builder(parts[0].in_channels, parts[0].size)
    for part in parts:
        _append(builder, part)
    return builder.net()


def sandwich(part: Part) -> tuple[Net, Net]:
    """The part between a lead-in and a mean, and the same without it: the difference is the part in context.

    Timed alone a part would pay for layout changes at its edges that it does not pay inside a network.
    """
    return _slice(part, with_part=True), _slice(part, with_part=False)


def _slice(part: Part, *, with_part: bool) -> Net:
    builder = _Builder(part.in_channels if part.kind == "stem" else LEAD_CHANNELS, part.size)
    if part.kind != "stem":
        builder.conv(part.in_channels, 1, activation="relu")
    if with_part:
        _append(builder, part)
    if not with_part or part.kind != "head":
        builder.mean()
    return builder.net()


def _append(builder: _Builder, part: Part) -> None:
    if not has_operators(part):
        raise InputError(f"no operators for {part.key}", fix="block tables know no attention")
    act = part.activation
    if part.kind == "stem":
        builder.conv(part.out_channels, part.kernel, stride=part.stride, activation=act)
    elif part.kind == "head":
        builder.conv(part.expansion, 1, activation=act)
        builder.mean()
        builder.linear(part.out_channels)
    elif part.block == "basic":
        _basic(builder, part)
    else:
        _block(builder, part)


def _block(builder: _Builder, part: Part) -> None:
    start, act = builder.value, part.activation
    hidden = part.in_channels * part.expansion
    projects = part.block == "inverted" or part.expansion > 1
    if part.block == "fused":
        builder.conv(hidden if projects else part.out_channels, part.kernel, stride=part.stride, activation=act)
    else:
        if part.expansion > 1:
            builder.conv(hidden, 1, activation=act)
        builder.conv(hidden, part.kernel, stride=part.stride, depthwise=True, activation=act)
    if part.squeeze_excite:
        builder.gate()
    if projects:
        builder.conv(part.out_channels, 1)
    if part.stride == 1 and part.in_channels == part.out_channels:
        builder.add(start)


def _basic(builder: _Builder, part: Part) -> None:
    start, channels, size = builder.value, builder.channels, builder.size
    builder.conv(part.out_channels, part.kernel, stride=part.stride, activation=part.activation)
    builder.conv(part.out_channels, part.kernel)
    if part.squeeze_excite:
        builder.gate()
    end = builder.value
    if part.stride > 1 or channels != part.out_channels:
        builder.back_to(start, channels, size)
        builder.conv(part.out_channels, 1, stride=part.stride)
        start = builder.value
        builder.back_to(end, part.out_channels, builder.size)
    builder.add(start, part.activation)
