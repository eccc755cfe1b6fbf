"""Find the student of highest capacity that keeps every limit; deterministic.

Spaces of stages: evolutionary (`evolve.py`), then a mixed-integer programme per body (`exact.py`) that proves the best
one or finds a better. Lists (a zoo, a pruned teacher), whose figures their room hands in: one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from edgekd.students.costs import CostModel, Prices, capacity_score
from edgekd.students.evolve import evolve
from edgekd.students.exact import TOLERANCE, Programme
from edgekd.students.selection import Candidate, Figures, Infeasible, Limits, Selection
from edgekd.students.space import Genome, StageSpace
from edgekd.students.spec import AnySpec

Method = Literal["exact", "evolutionary"]


def search(
    space: StageSpace,
    *,
    cost: CostModel | Prices,
    limits: Limits,
    keep: int = 20,
    method: Method = "exact",
    seed: int = 0,
) -> Selection | Infeasible:
    """The best `keep` students of a space under the limits, or the cheapest one and by how much it misses.

    The same space, costs, limits and seed always give the same answer, in about a second.
    Raises: ValueError: the space is empty.
    """
    if not space.bodies:
        raise ValueError(f"search space '{space.name}' is empty")
    prices = cost if isinstance(cost, Prices) else Prices(cost)
    programmes = [Programme(space, body, prices) for body in space.bodies]
    if all(programme.hopeless(limits) for programme in programmes):
        return _answer(space, _least(programmes, prices, limits), limits, keep, method)
    seen = evolve(space, lambda g: prices.figures(programmes[g[0]].totals(g[1])), limits, seed=seed)
    said = "evolutionary" if method == "evolutionary" else _prove(programmes, prices, limits, seen)
    return _answer(space, seen, limits, keep, said)


def select(listed: Iterable[tuple[AnySpec, Figures]], *, limits: Limits, keep: int = 20) -> Selection | Infeasible:
    """The same from a list of students with their figures. Raises: ValueError: the list is empty."""
    every = [Candidate(spec=spec, figures=figures, score=capacity_score(figures)) for spec, figures in listed]
    if not every:
        raise ValueError("no student to choose from")
    return _chosen(every, limits, keep, considered=len(every), method="one by one")


def merged(found: Sequence[Selection | Infeasible], *, keep: int = 20) -> Selection | Infeasible:
    """The answers of several spaces to the same limits as one."""
    selections = [one for one in found if isinstance(one, Selection)]
    considered = sum(one.considered for one in found)
    if not selections:
        nearest = min((one for one in found if isinstance(one, Infeasible)), key=lambda o: max(o.overruns.values()))
        return nearest.model_copy(update={"considered": considered})
    top = sorted((c for one in selections for c in one.top), key=lambda c: -c.score)
    return Selection(
        top=tuple(top[:keep]),
        limits=selections[0].limits,
        considered=considered,
        fitting=sum(one.fitting for one in selections),
        front=pareto([c for one in selections for c in one.front]),
        method=", ".join(dict.fromkeys(one.method for one in selections)),
    )


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Fastest first, each of higher capacity than all faster ones."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.figures.latency_p50_ms, -c.score)):
        if not kept or candidate.score > kept[-1].score:
            kept.append(candidate)
    return tuple(kept)


def _prove(programmes: list[Programme], prices: Prices, limits: Limits, seen: dict[Genome, Figures]) -> str:
    """Add to `seen` what the programmes find; how sure the best of it is."""
    if all(figures.overruns(limits) for figures in seen.values()):
        seen.update(_least(programmes, prices, limits))
    best = max((capacity_score(f) for f in seen.values() if not f.overruns(limits)), default=-math.inf)
    open_bodies = 0
    for number, programme in enumerate(programmes):
        proved = False
        while not proved:
            picks, proved = programme.better(limits, best)
            if picks is None or (number, picks) in seen:
                break
            found = seen[number, picks] = prices.figures(programme.totals(picks))
            score = capacity_score(found)
            proved = proved and score <= best + TOLERANCE  # the programme's own optimum, and it is no better
            best = max(best, score)
        open_bodies += not proved
    left = f", but for {open_bodies} of {len(programmes)} bodies" if open_bodies else ""
    return f"exact to {TOLERANCE:g} of the prior (mixed-integer programme){left}"


def _least(programmes: list[Programme], prices: Prices, limits: Limits) -> dict[Genome, Figures]:
    """Of every body the student that misses the limits by least."""
    picks = [(number, programme.least_overrun(limits)) for number, programme in enumerate(programmes)]
    return {genome: prices.figures(programmes[genome[0]].totals(genome[1])) for genome in picks}


def _answer(
    space: StageSpace, seen: dict[Genome, Figures], limits: Limits, keep: int, method: str
) -> Selection | Infeasible:
    every = [
        Candidate.model_construct(spec=space.spec(genome), figures=figures, score=capacity_score(figures))
        for genome, figures in seen.items()
    ]
    return _chosen(every, limits, keep, considered=space.size, method=method)


def _chosen(
    every: list[Candidate], limits: Limits, keep: int, *, considered: int, method: str
) -> Selection | Infeasible:
    overruns = [max(candidate.figures.overruns(limits).values(), default=0.0) for candidate in every]
    fitting = [candidate for candidate, over in zip(every, overruns, strict=True) if not over]
    if not fitting:
        cheapest = every[min(range(len(every)), key=lambda number: overruns[number])]
        return Infeasible(cheapest=cheapest, limits=limits, considered=considered)
    top = tuple(sorted(fitting, key=lambda candidate: -candidate.score)[:keep])
    return Selection(
        top=top, limits=limits, considered=considered, fitting=len(fitting), front=pareto(fitting), method=method
    )
