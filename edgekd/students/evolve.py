"""Evolutionary search over the choices of a space: where costs do not add over stages, or as a check on the exact one.

A student that misses a limit ranks by how much it misses it, below all that fit, so an infeasible budget ends in the
cheapest student found. Deterministic by seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from edgekd.students.costs import capacity_score
from edgekd.students.selection import Figures, Limits
from edgekd.students.space import Genome, StageSpace

POPULATION, GENERATIONS, PARENTS = 96, 60, 24
_MUTATION = 0.25  # chance that a stage of a child chooses anew

Rank = tuple[bool, float]


def evolve(
    space: StageSpace, figures: Callable[[Genome], Figures], limits: Limits, *, seed: int
) -> dict[Genome, Figures]:
    """Every student looked at, with its figures: about 5,000."""
    rng = random.Random(seed)
    seen: dict[Genome, Figures] = {}
    ranks: dict[Genome, Rank] = {}

    def look(genome: Genome) -> None:
        if genome not in seen:
            seen[genome] = figures(genome)
            ranks[genome] = rank(seen[genome], limits)

    for genome in [*_corners(space), *(_random(space, rng) for _ in range(POPULATION))]:
        look(genome)
    for _ in range(GENERATIONS):
        parents = sorted(seen, key=lambda g: (ranks[g], g), reverse=True)[:PARENTS]
        for _ in range(POPULATION):
            look(_child(space, rng, rng.choice(parents), rng.choice(parents)))
    return seen


def rank(figures: Figures, limits: Limits) -> Rank:
    """Higher is better: capacity for what fits, and below all of that, the least overrun."""
    overruns = figures.overruns(limits)
    return (False, -max(overruns.values())) if overruns else (True, capacity_score(figures))


def _corners(space: StageSpace) -> list[Genome]:
    return [(number, (0,) * len(body.choices)) for number, body in enumerate(space.bodies)]


def _random(space: StageSpace, rng: random.Random) -> Genome:
    number = rng.randrange(len(space.bodies))
    return number, tuple(rng.randrange(len(choices)) for choices in space.bodies[number].choices)


def _child(space: StageSpace, rng: random.Random, one: Genome, other: Genome) -> Genome:
    number, picks = one
    body = space.bodies[number]
    if len(space.bodies[other[0]].choices) == len(body.choices):
        picks = tuple(rng.choice(pair) for pair in zip(picks, other[1], strict=True))
    new = tuple(
        rng.randrange(len(choices)) if rng.random() < _MUTATION else pick
        for pick, choices in zip(picks, body.choices, strict=True)
    )
    if rng.random() < _MUTATION:
        near = min(len(space.bodies) - 1, max(0, number + rng.choice((-1, 1))))
        if len(space.bodies[near].choices) == len(new):
            number = near
    return number, new
