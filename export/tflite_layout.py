"""Take out transposes that move nothing: the converter leaves NHWC -> NCHW -> reshape -> NHWC chains around heads.

A chain of transposes and reshapes is one permutation of the values in memory. Where it is the identity it becomes a
reshape; where several transposes make it up (a channel shuffle: three) it becomes one, between two reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgekd.export.tflite_file import TfliteFile

LAYOUT = ("TRANSPOSE", "RESHAPE")
RANK_MAX = 6  # LiteRT transposes up to six axes
Chain = list[tuple[str, Any]]  # kind and operator, the last one of the graph first


def drop_idle_transposes(file: TfliteFile) -> int:
    """Rewrite the graph in place; how many TRANSPOSE operators went."""
    before = file.operators().count("TRANSPOSE")
    _mean_before_transpose(file)
    for index in range(len(file.graph.tensors)):
        _shorten(file, index)
    _drop_unread(file)
    return before - file.operators().count("TRANSPOSE")


def _shorten(file: TfliteFile, index: int) -> None:
    """Make tensor `index` from the furthest tensor that it is a reshape, or one transpose, of."""
    chain = _chain(file, index)
    for length in range(len(chain), 0, -1):
        steps = chain[:length]
        source, turns = int(steps[-1][1].inputs[0]), [kind for kind, _ in steps].count("TRANSPOSE")
        found = _as_one(file, steps) if file.grid(source) == file.grid(index) else None
        if found is None or not (turns or length > 1):
            continue
        shape, order = found
        if order == sorted(order):
            _identity(file, steps[0][1], source, index)
            return
        if turns > 1 and len(order) <= RANK_MAX:
            file.make_transpose(steps[0][1], source, shape, order)
            return


def _identity(file: TfliteFile, operator: Any, source: int, index: int) -> None:
    if file.shape(source) == file.shape(index) and index not in map(int, file.graph.outputs):
        _read_instead(file, index, source)
    else:
        file.make_reshape(operator, source)


def _chain(file: TfliteFile, index: int) -> Chain:
    """Layout operators that lead to a tensor, the last one first."""
    kinds, chain = dict(zip(map(id, file.graph.operators), file.operators(), strict=True)), []
    makers = {int(output): operator for operator in file.graph.operators for output in operator.outputs}
    while index in makers and kinds[id(makers[index])] in LAYOUT:
        chain.append((kinds[id(makers[index])], makers[index]))
        index = int(makers[index].inputs[0])
    return chain


def _as_one(file: TfliteFile, steps: Chain) -> tuple[list[int], list[int]] | None:
    """(shape, order): the steps as a reshape to `shape`, a transpose by `order` and a reshape; None if they are not."""
    axes = Axes(file.shape(int(steps[-1][1].inputs[0])))
    for kind, operator in reversed(steps):
        if kind == "RESHAPE":
            done = axes.reshape(file.shape(int(operator.outputs[0])))
        else:
            order = file.integers(int(operator.inputs[1]))
            done = order is not None and axes.transpose(order)
        if not done:
            return None
    return axes.merged()


class Axes:
    """The axes of a tensor, split as finely as the reshapes on the way need, and where each lay at the start.

    >>> axes = Axes((1, 4, 4, 6))  # a channel shuffle in three transposes
    >>> axes.transpose([0, 3, 1, 2]) and axes.reshape((1, 2, 3, 4, 4)) and axes.transpose([0, 2, 1, 3, 4])
    True
    >>> axes.reshape((1, 6, 4, 4)) and axes.transpose([0, 2, 3, 1]) and axes.merged()
    ([16, 2, 3], [0, 2, 1])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.sizes = dict(enumerate(shape))
        self.source = list(self.sizes)  # ids of axes as they lay at the start
        self.dims = [[axis] for axis in self.sizes]  # ids that make up each dimension now

    def transpose(self, order: Sequence[int]) -> bool:
        """Reorder the dimensions."""
        self.dims = [self.dims[position] for position in order]
        return True

    def reshape(self, shape: Sequence[int]) -> bool:
        """Regroup the axes, splitting those that lie across; False where they do not divide."""
        left = [axis for dim in self.dims for axis in dim if self.sizes[axis] != 1]
        dims: list[list[int]] = []
        for size in shape:
            dims.append([])
            while math.prod(self.sizes[axis] for axis in dims[-1]) < size:
                rest = size // math.prod(self.sizes[axis] for axis in dims[-1])
                if not left or not self._fit(left, rest):
                    return False
                dims[-1].append(left.pop(0))
            if math.prod(self.sizes[axis] for axis in dims[-1]) != size:
                return False
        self.dims = dims
        return not left

    def _fit(self, left: list[int], rest: int) -> bool:
        """Split the first axis so that it divides `rest`, if it can be."""
        axis = left[0]
        if rest % self.sizes[axis] == 0:
            return True
        if self.sizes[axis] % rest:
            return False
        inner = len(self.sizes)
        self.sizes[inner], self.sizes[axis] = self.sizes[axis] // rest, rest
        for order in (self.source, left, *self.dims):
            if axis in order:
                order.insert(order.index(axis) + 1, inner)
        return True

    def merged(self) -> tuple[list[int], list[int]]:
        """Sizes at the start and their order now, axes that stayed together taken as one."""
        now = [axis for dim in self.dims for axis in dim if self.sizes[axis] != 1]
        place = {axis: index for index, axis in enumerate(a for a in self.source if self.sizes[a] != 1)}
        groups: list[list[int]] = []
        for axis in now:
            if groups and place[axis] == place[groups[-1][-1]] + 1:
                groups[-1].append(axis)
            else:
                groups.append([axis])
        first = sorted(groups, key=lambda group: place[group[0]])
        sizes = [math.prod(self.sizes[axis] for axis in group) for group in first]
        return sizes, [first.index(group) for group in groups]


def _read_instead(file: TfliteFile, old: int, new: int) -> None:
    for operator in file.graph.operators:
        operator.inputs = [new if int(index) == old else int(index) for index in operator.inputs]


def _mean_before_transpose(file: TfliteFile) -> None:
    """MEAN over axes of a transposed tensor: over the same axes where they lay before, if the rest stays in order."""
    makers = {int(output): operator for operator in file.graph.operators for output in operator.outputs}
    kinds = dict(zip(map(id, file.graph.operators), file.operators(), strict=True))
    for operator in file.graph.operators:
        turned = makers.get(int(operator.inputs[0])) if kinds[id(operator)] == "MEAN" else None
        if turned is None or kinds[id(turned)] != "TRANSPOSE" or operator.builtinOptions.keepDims:
            continue
        order, axes = file.integers(int(turned.inputs[1])), file.integers(int(operator.inputs[1]))
        source = int(turned.inputs[0])
        if order is None or axes is None or file.grid(source) != file.grid(int(operator.inputs[0])):
            continue
        reduced = {int(axis) % len(order) for axis in axes}
        rest = [int(old) for new, old in enumerate(order) if new not in reduced]
        if rest == sorted(rest):
            there = sorted(int(order[axis]) for axis in reduced)
            operator.inputs = [source, file.integer_constant(there)]


def _drop_unread(file: TfliteFile) -> None:
    """Layout operators whose result nobody reads any more."""
    while True:
        read = {int(i) for operator in file.graph.operators for i in operator.inputs} | set(
            map(int, file.graph.outputs)
        )
        pairs = zip(file.operators(), file.graph.operators, strict=True)
        kept = [op for kind, op in pairs if kind not in LAYOUT or any(int(o) in read for o in op.outputs)]
        if len(kept) == len(file.graph.operators):
            return
        file.graph.operators = kept
