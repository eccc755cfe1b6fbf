"""What a spec computes, by arithmetic on the spec alone: the fast path of the search, held to tracing by a test.

A layer is one fused kernel (convolution with its batch norm and activation), in the order a runtime launches them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgekd.students.spec import StageSpec, StudentSpec


class Layer(NamedTuple):
    """One fused kernel at batch 1. Elements, not bytes; live_elements: activations alive while it runs.

    kind: conv, depthwise, linear, pool, add or other, in the words of `edgekd.latency.OpCost`.
    """

    kind: str
    macs: int
    read_elements: int
    write_elements: int
    weight_elements: int
    live_elements: int

    @property
    def moved_elements(self) -> int:
        """Elements that cross the memory bus once each."""
        return self.read_elements + self.write_elements + self.weight_elements


def layers_of(spec: StudentSpec) -> list[Layer]:
    """All fused kernels of a student, stem to classifier.

    >>> stage = StageSpec(channels=16, depth=1, expansion=1)
    >>> sizes = {"image_size": 8, "in_channels": 1, "num_classes": 10, "stem_channels": 8, "head_channels": 8}
    >>> spec = StudentSpec(stages=(stage,), **sizes)
    >>> [layer.kind for layer in layers_of(spec)]
    ['conv', 'depthwise', 'conv', 'conv', 'pool', 'linear']
    """
    size = spec.image_size
    found = [_conv(size, spec.in_channels, spec.stem_channels, 3, stride=spec.stem_stride)]
    size, channels = -(-size // spec.stem_stride), spec.stem_channels
    for stage in spec.stages:
        found += stage_layers(stage, channels, size)
        size, channels = -(-size // stage.stride), stage.channels
    return found + head_layers(spec, channels, size)


def stage_layers(stage: StageSpec, in_channels: int, size: int) -> list[Layer]:
    """Kernels of one stage whose input is (in_channels, size, size)."""
    found = list(_block(stage, in_channels, size, stage.stride))
    size = -(-size // stage.stride)
    for _ in range(stage.depth - 1):
        found += _block(stage, stage.channels, size, 1)
    return found


def head_layers(spec: StudentSpec, in_channels: int, size: int) -> list[Layer]:
    """Kernels of the head: 1x1 convolution, global mean, linear."""
    wide, classes = spec.head_channels, spec.num_classes
    mapped = wide * size * size
    linear = Layer("linear", wide * classes, wide, classes, (wide + 1) * classes, wide + classes)
    return [_conv(size, in_channels, wide, 1), Layer("pool", 0, mapped, wide, 0, mapped + wide), linear]


def _block(stage: StageSpec, in_channels: int, size: int, stride: int) -> Iterator[Layer]:
    hidden, out, small = in_channels * stage.expansion, stage.channels, -(-size // stride)
    residual = stride == 1 and in_channels == out
    kept = in_channels * size * size if residual else 0  # the shortcut stays alive beside the block's own maps
    projects = stage.block == "inverted" or stage.expansion > 1
    if stage.block == "fused":
        wide = hidden if projects else out
        yield _conv(size, in_channels, wide, stage.kernel, stride=stride)
    else:
        if stage.expansion > 1:
            yield _conv(size, in_channels, hidden, 1)
        spare = kept if stage.expansion > 1 else 0
        yield _conv(size, hidden, hidden, stage.kernel, stride=stride, depthwise=True, kept=spare)
    if stage.squeeze_excite:
        yield from _gate(hidden if projects else out, small, kept)
    if projects:
        yield _conv(small, hidden, out, 1, kept=kept)
    if residual:
        mapped = out * small * small
        yield Layer("add", 0, 2 * mapped, mapped, 0, 3 * mapped)


def _conv(
    size: int, inside: int, out: int, kernel: int, *, stride: int = 1, depthwise: bool = False, kept: int = 0
) -> Layer:
    positions = (-(-size // stride)) ** 2
    taps = kernel * kernel * (1 if depthwise else inside)
    read, write = inside * size * size, out * positions
    kind = "depthwise" if depthwise else "conv"
    return Layer(kind, positions * taps * out, read, write, (taps + 1) * out, read + write + kept)


def _gate(channels: int, size: int, kept: int) -> Iterator[Layer]:
    mapped, squeezed = channels * size * size, max(8, channels // 4)
    held = mapped + kept
    yield Layer("pool", 0, mapped, channels, 0, held + channels)
    yield Layer("conv", channels * squeezed, channels, squeezed, (channels + 1) * squeezed, held + channels + squeezed)
    yield Layer("conv", channels * squeezed, squeezed, channels, (squeezed + 1) * channels, held + channels + squeezed)
    yield Layer("other", 0, mapped + channels, mapped, 0, held + mapped + channels)
