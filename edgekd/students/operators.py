"""Which operators a student of stages has, by its parts alone, and the rest of a space without some of them.

In the words of a traced network (`edgekd.latency.GraphCost.operators`); a test traces students and compares. A body's
activation decides for all of its students, so ten thousand of them are left out without a look at any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import lru_cache

from edgekd.students.layers import Part, head_part, parts_of, stage_parts, stem_part
from edgekd.students.space import Body, StageChoice, StageSpace
from edgekd.students.spec import HEAD_DIM, StudentSpec

_ACTIVATIONS = {"relu": "relu", "relu6": "hardtanh", "hardswish": "hardswish"}
_GATE = frozenset({"mean", "relu", "hardsigmoid", "mul"})
_ATTENTION = frozenset({"mul", "bmm", "_safe_softmax", "view", "transpose", "split", "add"})
_HEADS = frozenset({"clone", "_unsafe_view"})  # several heads do not lie in memory as they are read


@lru_cache(maxsize=100_000)
def part_operators(part: Part) -> frozenset[str]:
    """The operators of one part.

    >>> sorted(part_operators(Part("head", 16, 10, 4, 1, 1, 32, "fused", False, "hardswish")))
    ['addmm', 'convolution', 'hardswish', 'mean']
    """
    found = {"convolution", _ACTIVATIONS[part.activation]}
    if part.kind == "head":
        return frozenset(found | {"mean", "addmm"})
    if part.kind == "stem":
        return frozenset(found)
    return frozenset(found | _block_operators(part))


def _block_operators(part: Part) -> set[str]:
    found, block = set[str](), part.block
    if block == "attention":
        found |= _ATTENTION | (_HEADS if part.out_channels > HEAD_DIM else frozenset())
    if block == "inverted":
        found.add("depthwise_convolution")
    if block == "basic" or (part.stride == 1 and part.in_channels == part.out_channels):
        found.add("add")
    return found | _GATE if part.squeeze_excite else found


def student_operators(spec: StudentSpec) -> frozenset[str]:
    """All operators of a student."""
    return frozenset().union(*(part_operators(part) for part in parts_of(spec)))


def space_operators(space: StageSpace) -> frozenset[str]:
    """All operators that any student of a space has."""
    return frozenset().union(*(found for body in space.bodies for found in _of_body(space, body)))


def without(space: StageSpace, unwanted: Collection[str]) -> StageSpace:
    """The students of a space that have none of some operators; it may have no bodies left."""
    if not unwanted:
        return space
    bodies = []
    for body in space.bodies:
        if not _ends(space, body).isdisjoint(unwanted):
            continue
        kept = tuple(
            tuple(choice for choice in choices if _of_choice(space, body, number, choice).isdisjoint(unwanted))
            for number, choices in enumerate(body.choices)
        )
        if all(kept):
            bodies.append(body._replace(choices=kept))
    return replace(space, bodies=tuple(bodies))


def _of_body(space: StageSpace, body: Body) -> Iterator[frozenset[str]]:
    yield _ends(space, body)
    for number, choices in enumerate(body.choices):
        for choice in choices:
            yield _of_choice(space, body, number, choice)


def _ends(space: StageSpace, body: Body) -> frozenset[str]:
    spec = space.without_stages(body)
    return part_operators(stem_part(spec)) | part_operators(head_part(spec, body.channels[-1], 1))


def _of_choice(space: StageSpace, body: Body, number: int, choice: StageChoice) -> frozenset[str]:
    inside = body.channels[number - 1] if number else body.stem_channels
    first, rest = stage_parts(space.stage(body, number, choice), inside, 2, body.activation)
    return part_operators(first) | part_operators(rest) if choice.depth > 1 else part_operators(first)
