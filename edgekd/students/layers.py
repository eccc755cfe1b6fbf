"""What a spec computes, by arithmetic on the spec alone: the fast path of the search, held to tracing by a test.

A layer is one fused kernel (convolution with its batch norm and activation), in the order a runtime launches them. A
part is what a network is put together from and what a block table measures: stem, block, head.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from edgekd.students.spec import HEAD_DIM, Activation, BlockKind, StageSpec, StudentSpec

_COSTLY = ("hardswish", "hardsigmoid")  # an exponential, root or quotient per element


class Layer(NamedTuple):
    """One fused kernel at batch 1. Elements, not bytes; live_elements: activations alive while it runs.

    kind (conv, depthwise, linear, pool, add or other), op and all that follows it: as in `edgekd.latency.OpCost`.
    """

    kind: str
    macs: int
    read_elements: int
    write_elements: int
    weight_elements: int
    live_elements: int
    op: str = ""
    taps: int = 1
    stride: int = 1
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0
    costly_elements: int = 0

    @property
    def moved_elements(self) -> int:
        """Elements that cross the memory bus once each."""
        return self.read_elements + self.write_elements + self.weight_elements


class Part(NamedTuple):
    """Stem, one block, or head, with the input (in_channels, size, size); out_channels of a head: its classes.

    expansion of a head: the channels of its 1x1 convolution.
    """

    kind: Literal["stem", "block", "head"]
    in_channels: int
    out_channels: int
    size: int
    stride: int
    kernel: int
    expansion: int
    block: BlockKind
    squeeze_excite: bool
    activation: Activation

    @property
    def key(self) -> str:
        """The part in one word, the same in every process.

        >>> Part("block", 16, 24, 28, 2, 3, 4, "inverted", True, "relu").key
        'block-inverted-k3-e4-se-relu-16x28-24s2'
        """
        gate = "-se" if self.squeeze_excite else ""
        shape = f"{self.in_channels}x{self.size}-{self.out_channels}s{self.stride}"
        return f"{self.kind}-{self.block}-k{self.kernel}-e{self.expansion}{gate}-{self.activation}-{shape}"


def parts_of(spec: StudentSpec) -> list[Part]:
    """Stem, blocks in order, head.

    >>> stage = StageSpec(channels=16, depth=2, expansion=1, stride=2)
    >>> sizes = {"image_size": 8, "in_channels": 1, "num_classes": 10, "stem_channels": 8, "head_channels": 8}
    >>> [f"{part.kind} {part.size}" for part in parts_of(StudentSpec(stages=(stage,), **sizes))]
    ['stem 8', 'block 8', 'block 4', 'head 4']
    """
    found = [stem_part(spec)]
    size, channels = -(-spec.image_size // spec.stem_stride), spec.stem_channels
    for stage in spec.stages:
        first, rest = stage_parts(stage, channels, size, spec.activation)
        found += [first, *[rest] * (stage.depth - 1)]
        size, channels = -(-size // stage.stride), stage.channels
    return [*found, head_part(spec, channels, size)]


def stem_part(spec: StudentSpec) -> Part:
    """The first convolution."""
    out, stride = spec.stem_channels, spec.stem_stride
    return Part("stem", spec.in_channels, out, spec.image_size, stride, 3, 1, "fused", False, spec.activation)


def head_part(spec: StudentSpec, in_channels: int, size: int) -> Part:
    """1x1 convolution, mean over the pixels, linear."""
    classes, wide = spec.num_classes, spec.head_channels
    return Part("head", in_channels, classes, size, 1, 1, wide, "fused", False, spec.activation)


def stage_parts(stage: StageSpec, in_channels: int, size: int, activation: Activation) -> tuple[Part, Part]:
    """A stage's first block, and the one that the rest of its depth repeats."""
    kept = (stage.kernel, stage.expansion, stage.block, stage.squeeze_excite, activation)
    small = -(-size // stage.stride)
    return (
        Part("block", in_channels, stage.channels, size, stage.stride, *kept),
        Part("block", stage.channels, stage.channels, small, 1, *kept),
    )


def layers_of(spec: StudentSpec) -> list[Layer]:
    """All fused kernels of a student, stem to classifier.

    >>> stage = StageSpec(channels=16, depth=1, expansion=1)
    >>> sizes = {"image_size": 8, "in_channels": 1, "num_classes": 10, "stem_channels": 8, "head_channels": 8}
    >>> spec = StudentSpec(stages=(stage,), **sizes)
    >>> [layer.kind for layer in layers_of(spec)]
    ['conv', 'depthwise', 'conv', 'conv', 'pool', 'linear']
    """
    return [layer for part in parts_of(spec) for layer in part_layers(part)]


@lru_cache(maxsize=100_000)
def part_layers(part: Part) -> tuple[Layer, ...]:
    """The fused kernels of one part."""
    if part.kind == "stem":
        act = part.activation
        return (_conv(part.size, part.in_channels, part.out_channels, part.kernel, stride=part.stride, act=act),)
    if part.kind == "head":
        return _head(part)
    kinds = {"basic": _basic, "attention": _attention}
    return tuple(kinds.get(part.block, _block)(part))


def part_loops(part: Part) -> tuple[Layer, ...]:
    """What a compiler like torch.compile makes of a part but for its contractions: one loop nest per chain.

    The batch norm and activation behind a convolution are a nest, which a shortcut's add and a mean join.
    """
    nests: list[Layer] = []
    for layer in part_layers(part):
        mapped = layer.write_elements
        if layer.kind in ("conv", "depthwise"):
            nests.append(
                Layer("other", 0, mapped, mapped, 0, 0, "native_batch_norm", costly_elements=layer.costly_elements)
            )
        elif layer.kind == "add":
            costly = nests[-1].costly_elements + layer.costly_elements
            nests[-1] = nests[-1]._replace(read_elements=nests[-1].read_elements + mapped, costly_elements=costly)
        elif layer.kind == "pool":
            kept = 0 if part.kind == "head" else layer.read_elements  # a gate multiplies what it has seen
            nests[-1] = nests[-1]._replace(op="mean", write_elements=mapped + kept)
        elif layer.kind == "other":
            nests.append(layer)
    return tuple(nests)


def _head(part: Part) -> tuple[Layer, ...]:
    wide, classes, size = part.expansion, part.out_channels, part.size
    linear = Layer("linear", wide * classes, wide, classes, (wide + 1) * classes, wide + classes, "addmm")
    linear = linear._replace(in_channels=wide, out_channels=classes)
    return (_conv(size, part.in_channels, wide, 1, act=part.activation), _mean(wide, size, wide), linear)


def _block(part: Part) -> Iterator[Layer]:
    size, stride, inside, out, act = part.size, part.stride, part.in_channels, part.out_channels, part.activation
    hidden, small = inside * part.expansion, -(-size // stride)
    residual = stride == 1 and inside == out
    kept = inside * size * size if residual else 0  # the shortcut stays alive beside the block's own maps
    projects = part.block == "inverted" or part.expansion > 1
    if part.block == "fused":
        wide = hidden if projects else out
        yield _conv(size, inside, wide, part.kernel, stride=stride, act=act)
    else:
        if part.expansion > 1:
            yield _conv(size, inside, hidden, 1, act=act)
        spare = kept if part.expansion > 1 else 0
        yield _conv(size, hidden, hidden, part.kernel, stride=stride, depthwise=True, kept=spare, act=act)
    if part.squeeze_excite:
        yield from _gate(hidden if projects else out, small, kept)
    if projects:
        yield _conv(small, hidden, out, 1, kept=kept)
    if residual:
        yield _add(out, small)


def _basic(part: Part) -> Iterator[Layer]:
    size, stride, inside, out, act = part.size, part.stride, part.in_channels, part.out_channels, part.activation
    small, image = -(-size // stride), inside * size * size
    same = stride == 1 and inside == out
    yield _conv(size, inside, out, part.kernel, stride=stride, act=act)
    yield _conv(small, out, out, part.kernel, kept=image)
    if part.squeeze_excite:
        yield from _gate(out, small, image)
    if not same:
        yield _conv(size, inside, out, 1, stride=stride, kept=out * small * small)
    yield _add(out, small, act=act)


def _attention(part: Part) -> Iterator[Layer]:
    size, stride, inside, out, act = part.size, part.stride, part.in_channels, part.out_channels, part.activation
    small = -(-size // stride)
    if stride > 1 or inside != out:
        yield _conv(size, inside, out, 3, stride=stride, act=act)
    positions = small * small
    mapped, pairs = out * positions, out // HEAD_DIM * positions * positions
    yield _conv(small, out, 3 * out, 1, kept=mapped)
    yield Layer(
        "other", 0, mapped, mapped, 0, 5 * mapped, "mul"
    )  # queries, keys are scaled; the map and qkv stay alive
    yield Layer("other", 0, mapped, mapped, 0, 6 * mapped, "mul")
    scores = Layer("linear", pairs * HEAD_DIM, 2 * mapped, pairs, 0, 6 * mapped + pairs, "bmm")
    yield scores._replace(in_channels=HEAD_DIM, out_channels=positions)
    yield Layer("other", 0, pairs, pairs, 0, 4 * mapped + 2 * pairs, "_safe_softmax", costly_elements=pairs)
    mixed = Layer("linear", pairs * HEAD_DIM, pairs + mapped, mapped, 0, 5 * mapped + pairs, "bmm")
    yield mixed._replace(in_channels=positions, out_channels=HEAD_DIM)
    if out > HEAD_DIM:  # one head lies in memory as it is read
        yield Layer("other", 0, mapped, mapped, 0, 3 * mapped, "clone")  # back to channels first
    yield _conv(small, out, out, 1, kept=mapped)
    yield _add(out, small)
    yield _conv(small, out, out * part.expansion, 1, act=act)
    yield _conv(small, out * part.expansion, out, 1, kept=mapped)
    yield _add(out, small)


def _add(channels: int, size: int, *, act: str = "") -> Layer:
    mapped = channels * size * size
    return Layer("add", 0, 2 * mapped, mapped, 0, 3 * mapped, "add", costly_elements=mapped if act in _COSTLY else 0)


def _mean(channels: int, size: int, held: int) -> Layer:
    mapped = channels * size * size
    return Layer("pool", 0, mapped, channels, 0, mapped + held, "mean")


def _conv(
    size: int,
    inside: int,
    out: int,
    kernel: int,
    *,
    stride: int = 1,
    depthwise: bool = False,
    kept: int = 0,
    act: str = "",
) -> Layer:
    positions = (-(-size // stride)) ** 2
    window = kernel * kernel
    taps = window * (1 if depthwise else inside)
    read, write = inside * size * size, out * positions
    return Layer(
        "depthwise" if depthwise else "conv",
        positions * taps * out,
        read,
        write,
        (taps + 1) * out,
        read + write + kept,
        "convolution",
        taps=window,
        stride=stride,
        groups=inside if depthwise else 1,
        in_channels=inside,
        out_channels=out,
        costly_elements=write if act in _COSTLY else 0,
    )


def _gate(channels: int, size: int, kept: int) -> Iterator[Layer]:
    mapped, squeezed = channels * size * size, max(8, channels // 4)
    held = mapped + kept
    yield _mean(channels, size, kept + channels)
    yield _conv(1, channels, squeezed, 1, kept=held)
    yield _conv(1, squeezed, channels, 1, kept=held, act="hardsigmoid")
    yield Layer("other", 0, mapped + channels, mapped, 0, held + mapped + channels, "mul")
