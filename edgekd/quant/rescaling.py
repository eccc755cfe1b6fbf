"""Rescalings that every runtime rounds alike: each becomes a fraction with an odd denominator.

An integer kernel's sum is a whole number; times `input scale x weight scale / output scale` it is rounded to a code.
Runtimes do that product in float32 or in fixed point, in another order, some round ties with the zero point added: of
100,000 values three land on the other side, and every layer behind spreads them, up to the level of quantisation noise.
Where the factor is m / q with q odd, no whole number times it lies on a tie, for twice of it over q is no odd number,
and none is nearer to one than 1 / 2q: further than float32's error. So the scales of weights are moved by half a
thousandth (at most two), with the codes as they are, those of products and means by one (at most four), those of sums
by up to a sixty-fourth.

Measured on 64 images (CIFAR-10 at 64 px): regnet_y_400mf and efficientnet_b0 give the same bits in LiteRT, ONNX Runtime
and PyTorch's float32 as in float64; before, they kept 52, 51 and 40 dB of it, and efficientnet_b0 13 in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgekd.quant.layers import WEIGHTED, shape_behind
from edgekd.quant.nodes import add_tensor, aten, nodes_of, tensor_of
from edgekd.quant.quantizer import ADDITION, CLAMP, CONCATENATION, GLOBAL_POOL, RESIZE, SHARED

Values = NDArray[np.float64]
decomposed = torch.ops.quantized_decomposed
QUANTISE, DEQUANTISE = decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default
MULTIPLICATION = {aten.mul.Tensor, aten.mul_.Tensor}
MOVING = SHARED | RESIZE | CONCATENATION | CLAMP
# Relative moves of a scale, the smallest that suffices: a weight's codes stay, a sum's range may lose a hundredth.
WEIGHT_TOLERANCES, ACTIVATION_TOLERANCES = (2.0**-11, 2.0**-9), (2.0**-10, 2.0**-8)
# A sum's denominator divides those of the layer that is added: 1 / 3 is worth a hundredth of the range.
SUM_TOLERANCES = (2.0**-6,)
MAX_DENOMINATOR = 8191  # half a code over it is 6e-5; float32 loses some 3e-5 of code 255


class Grids:
    """The activation grids of a graph: one per tensor, shared by what only moves its values.

    A grid that something depends on already (`pinned`) stays as it is: each is moved once, in the order of the graph.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.members: dict[fx.Node, list[fx.Node]] = {}
        self.pinned: set[int] = set()
        for node in nodes_of(graph, QUANTISE, DEQUANTISE):
            self.members[node] = [node]
        for node in self.members:
            source = cast(fx.Node, node.args[0])
            for other in [source] if node.target is DEQUANTISE else self._moved(source):
                if other in self.members and other.args[1:3] == node.args[1:3]:
                    self._join(node, other)
        for node in self.members:
            if cast(fx.Node, node.args[0]).op in ("placeholder", "get_attr"):
                self.pin(node)  # preprocessing may be folded into the one, the other is a constant's codes

    def _moved(self, source: fx.Node) -> Iterable[fx.Node]:
        return source.all_input_nodes if source.target in MOVING or _is_pool_to_image(source) else ()

    def _join(self, one: fx.Node, other: fx.Node) -> None:
        if self.members[one] is not self.members[other]:
            joined = self.members[one] + self.members[other]
            self.members.update(dict.fromkeys(joined, joined))

    def pin(self, node: fx.Node) -> None:
        """From now on this grid stands still."""
        self.pinned.add(id(self.members[node]))

    def is_free(self, node: fx.Node) -> bool:
        """Whether a grid may still move."""
        return id(self.members[node]) not in self.pinned

    def move(self, node: fx.Node, scale: float) -> None:
        """Another scale for a grid, as float32 has it, and it stands still."""
        for member in self.members[node]:
            member.args = (member.args[0], float(np.float32(scale)), *member.args[2:])
        self.pin(node)


def round_alike(graph: fx.GraphModule) -> None:
    """Move the scales of an int8 program so that its rescalings are fractions with odd denominators, in place.

    Codes stay as they are. Biases go on their grid afterwards. What has no such fraction near keeps its scale.
    """
    grids, sums = Grids(graph), dict[fx.Node, int]()
    for node in list(graph.graph.nodes):
        output = _output(node)
        if output is None:
            continue
        if node.target in ADDITION:
            _addition(grids, node, output, sums)
        elif node.target in MULTIPLICATION:
            _product(grids, node, output)
        elif node.target in GLOBAL_POOL and not _is_pool_to_image(node):
            _mean(grids, node, output)
        elif node.target not in {*WEIGHTED, *MOVING, *GLOBAL_POOL}:
            grids.pin(output)  # a gate's grid is fixed by the runtimes, other functions gain nothing
    for index, layer in enumerate(nodes_of(graph, *WEIGHTED)):
        _weights(graph, layer, sums, index)
    graph.recompile()


def _output(node: fx.Node) -> fx.Node | None:
    """The quantiser of an operator's result, through a clamp; None where the result is not rounded, or several ways."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in CLAMP:
        users = list(users[0].users)
    return users[0] if len(users) == 1 and users[0].target is QUANTISE else None


def _scale(node: fx.Node) -> float:
    return float(cast(float, node.args[1]))


def _operands(node: fx.Node) -> list[fx.Node]:
    return [part for part in node.args[:2] if isinstance(part, fx.Node)]


def _addition(grids: Grids, node: fx.Node, output: fx.Node, sums: dict[fx.Node, int]) -> None:
    """Both operands as fractions of the sum's grid, with one odd denominator; a layer's own result follows later."""
    parts = _operands(node)
    rounded = [part for part in parts if part.target is DEQUANTISE]
    layers = [part for part in parts if part.target is not DEQUANTISE]
    if len(parts) != 2 or not rounded or not grids.is_free(output):
        return
    rounded.sort(key=grids.is_free)  # what stands still already decides
    first = fraction(_scale(rounded[0]) / _scale(output), SUM_TOLERANCES)
    if first is None:
        return
    grids.pin(rounded[0])
    grids.move(output, _scale(rounded[0]) * first[1] / first[0])
    if layers:
        sums[layers[0]] = first[1]
    elif grids.is_free(rounded[1]):
        second = fraction(_scale(rounded[1]) / _scale(output), ACTIVATION_TOLERANCES, multiple_of=first[1])
        if second is not None:
            grids.move(rounded[1], _scale(output) * second[0] / second[1])


def _product(grids: Grids, node: fx.Node, output: fx.Node) -> None:
    parts = _operands(node)
    if len(parts) == 2 and all(part.target is DEQUANTISE for part in parts) and grids.is_free(output):
        _follow(grids, parts, output, _scale(parts[0]) * _scale(parts[1]))


def _mean(grids: Grids, node: fx.Node, output: fx.Node) -> None:
    """A mean is a whole sum times the scale over the number of values."""
    source = node.all_input_nodes[0]
    if source.target is DEQUANTISE and grids.is_free(output):
        values, means = (math.prod(int(size) for size in shape_behind(part)) for part in (source, node))
        _follow(grids, [source], output, _scale(source) * means / values)


def _is_pool_to_image(node: fx.Node) -> bool:
    """A pool to more than one pixel, which shares one grid with what it reads (`EdgeQuantizer`)."""
    return node.target is aten.adaptive_avg_pool2d.default and math.prod(shape_behind(node)[-2:]) > 1


def _follow(grids: Grids, sources: list[fx.Node], output: fx.Node, step: float) -> None:
    """The output's grid as an odd number of parts of the step of what is summed."""
    found = fraction(step / _scale(output), ACTIVATION_TOLERANCES)
    if found is not None:
        for source in sources:
            grids.pin(source)
        grids.move(output, step * found[1] / found[0])


def _weights(graph: fx.GraphModule, layer: fx.Node, sums: dict[fx.Node, int], index: int) -> None:
    """Per channel a scale that makes the layer's rescaling a fraction with an odd denominator."""
    image, weight = (cast(fx.Node, argument) for argument in layer.args[:2])
    if image.target is not DEQUANTISE or weight.target is not decomposed.dequantize_per_channel.default:
        return
    reader = next(iter(layer.users)) if len(layer.users) == 1 else None
    output = _output(reader) if layer in sums and reader is not None else _output(layer)
    if output is None or weight.args[3] != 0 or len(weight.users) > 1:
        return
    step = _scale(output) / _scale(image)
    factors = tensor_of(graph, cast(fx.Node, weight.args[1])).double().numpy() / step
    numerators, denominators = fractions(factors, WEIGHT_TOLERANCES, multiple_of=sums.get(layer, 1))
    moved = np.where(denominators > 0, numerators / np.maximum(denominators, 1), factors) * step
    with graph.graph.inserting_before(weight):
        scales = add_tensor(graph, f"scales_round_alike_{index}", torch.from_numpy(moved).float())
    weight.args = (weight.args[0], scales, *weight.args[2:])


def fraction(value: float, tolerances: Sequence[float], *, multiple_of: int = 1) -> tuple[int, int] | None:
    """(m, q): m / q near a positive value, q odd and as small as can be; None where there is none (see `fractions`).

    >>> fraction(0.5, [1e-3]), fraction(1.0, [1e-3]), fraction(1e-9, [1e-3])
    ((500, 1001), (1, 1), None)
    """
    numerators, denominators = fractions(np.array([value]), tolerances, multiple_of=multiple_of)
    return (int(numerators[0]), int(denominators[0])) if denominators[0] else None


def fractions(values: Values, tolerances: Sequence[float], *, multiple_of: int = 1) -> tuple[Values, Values]:
    """Numerators and denominators (n,) of the fractions nearest to positive values (n,); 0 / 0 where there is none.

    tolerances: relative, the first that has one decides. multiple_of: an odd number that divides each denominator.
    """
    odd = multiple_of * np.arange(1, MAX_DENOMINATOR // multiple_of + 1, 2, dtype=np.float64)
    numerators = np.rint(values[:, None] * odd)
    errors = np.where(numerators > 0, np.abs(numerators / odd / values[:, None] - 1), np.inf)
    rows, best = np.arange(len(values)), np.full(len(values), -1)
    for tolerance in tolerances:
        near = errors <= tolerance
        best = np.where((best < 0) & near.any(1), near.argmax(1), best)
    found = best >= 0
    return np.where(found, numerators[rows, best], 0), np.where(found, odd[best], 0)
