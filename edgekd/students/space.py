"""A space of students of stages: some bodies (channels, strides, activation, image size), each with choices per stage.

Given a body, the cost of a stage does not depend on what its neighbours choose: that is what makes the search exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edgekd.students.costs import Prices, Totals, total
from edgekd.students.layers import head_part, stage_parts, stem_part
from edgekd.students.spec import Activation, BlockKind, StageSpec, StudentSpec


class StageChoice(NamedTuple):
    """What one stage may be."""

    block: BlockKind
    kernel: int
    expansion: int
    squeeze_excite: bool
    depth: int


class Body(NamedTuple):
    """What is chosen once for the whole network, and the choices of each stage. channels, strides: one per stage."""

    image_size: int
    width: float
    activation: Activation
    stem_channels: int
    stem_stride: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    head_channels: int
    choices: tuple[tuple[StageChoice, ...], ...]


Genome = tuple[int, tuple[int, ...]]
"""A student of a space: which body, and which choice in each of its stages."""


@dataclass(frozen=True)
class StageSpace:
    """All students of some bodies."""

    name: str
    in_channels: int
    num_classes: int
    bodies: tuple[Body, ...]

    @property
    def size(self) -> int:
        """How many students it holds."""
        return sum(math.prod(len(choices) for choices in body.choices) for body in self.bodies)

    def genomes(self) -> Iterator[Genome]:
        """Every student, in a fixed order: only for small spaces."""
        for number, body in enumerate(self.bodies):
            for picks in itertools.product(*(range(len(choices)) for choices in body.choices)):
                yield number, picks

    def specs(self) -> Iterator[StudentSpec]:
        """Every student as a spec."""
        return (self.spec(genome) for genome in self.genomes())

    def spec(self, genome: Genome) -> StudentSpec:
        """One student. Made without validation, for speed: the spaces are held to it by a test."""
        body, picks = self.bodies[genome[0]], genome[1]
        stages = tuple(self.stage(body, number, body.choices[number][pick]) for number, pick in enumerate(picks))
        return self._spec(body, stages)

    def stage(self, body: Body, number: int, choice: StageChoice) -> StageSpec:
        """One stage of a body."""
        return StageSpec.model_construct(
            channels=body.channels[number], stride=body.strides[number], **choice._asdict()
        )

    def without_stages(self, body: Body) -> StudentSpec:
        """What a body fixes: the spec of stem and head, with no stages between them."""
        return self._spec(body, ())

    def ends(self, body: Body, prices: Prices) -> Totals:
        """Totals of stem and head, the same whatever the stages choose."""
        spec, size = self.without_stages(body), -(-body.image_size // body.stem_stride)
        for stride in body.strides:
            size = -(-size // stride)
        return total([prices.part(stem_part(spec)), prices.part(head_part(spec, body.channels[-1], size))])

    def stage_totals(self, body: Body, prices: Prices) -> list[list[Totals]]:
        """For every stage the totals of each of its choices."""
        found, inside, size = [], body.stem_channels, -(-body.image_size // body.stem_stride)
        for number, choices in enumerate(body.choices):
            row = []
            for choice in choices:
                first, rest = stage_parts(self.stage(body, number, choice), inside, size, body.activation)
                row.append(prices.part(first).plus(prices.part(rest), choice.depth - 1))
            found.append(row)
            inside, size = body.channels[number], -(-size // body.strides[number])
        return found

    def _spec(self, body: Body, stages: tuple[StageSpec, ...]) -> StudentSpec:
        return StudentSpec.model_construct(
            space=self.name,
            image_size=body.image_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            stem_channels=body.stem_channels,
            stem_stride=body.stem_stride,
            stages=stages,
            head_channels=body.head_channels,
            activation=body.activation,
        )
