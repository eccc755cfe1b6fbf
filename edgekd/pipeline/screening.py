"""Which candidates the profile's first runtime can run, before any is priced against a budget.

Students with a refused operator never enter. Those with an operator that leaves the unit are legal, but nobody states
what a switch of units costs, so they are searched only where no student that stays on the unit fits the budgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgekd.errors import InputError
from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.plan import Plan
from edgekd.profile import RuntimeSupport
from edgekd.students import AnySpec, Figures, LeftOut, StageSpace, space_operators, without
from edgekd.targets.legality import Misfit, explain, misfits


class Listed(NamedTuple):
    """A student of a list, with its figures and the operators that tracing it found."""

    spec: AnySpec
    figures: Figures
    operators: tuple[str, ...]


class Pool(NamedTuple):
    """The candidates of one space: either stages, or a list."""

    name: str
    space: StageSpace | None
    listed: tuple[Listed, ...] = ()

    @property
    def size(self) -> int:
        """How many students it holds."""
        return len(self.listed) if self.space is None else self.space.size

    def operators(self) -> frozenset[str]:
        """All operators that any of its students has."""
        if self.space is not None:
            return space_operators(self.space)
        return frozenset().union(*(one.operators for one in self.listed))

    def lacking(self, unwanted: Sequence[str]) -> Pool:
        """Those of its students that have none of some operators."""
        if self.space is not None:
            return self._replace(space=without(self.space, unwanted))
        return self._replace(listed=tuple(one for one in self.listed if set(one.operators).isdisjoint(unwanted)))


class Screened(NamedTuple):
    """Candidates that run, those of them that stay on the unit, and who is missing from each."""

    legal: tuple[Pool, ...]
    refused: tuple[LeftOut, ...]
    staying: tuple[Pool, ...]
    moved: tuple[LeftOut, ...]

    def rounds(self) -> list[tuple[tuple[Pool, ...], tuple[LeftOut, ...]]]:
        """What is searched, in turn, until something fits, and who is missing from it; no empty pools, at least one."""
        both = [(self.staying, (*self.refused, *self.moved)), (self.legal, self.refused)]
        filled = [(tuple(pool for pool in pools if pool.size), left_out) for pools, left_out in both]
        return [(pools, left_out) for pools, left_out in (filled if self.moved else filled[:1]) if pools]


def screen(pools: Sequence[Pool], inputs: Inputs | Context, plan: Plan) -> Screened:
    """Raises: InputError: the runtime refuses an operator of every candidate; the operators are named."""
    runtime = inputs.profile.primary
    found = {pool.name: misfits(pool.operators(), runtime, plan.precision) for pool in pools}
    legal, refused = _without(pools, {name: [one for one in every if one.refused] for name, every in found.items()})
    if not any(pool.size for pool in legal):
        raise _all_refused(sum(pool.size for pool in pools), refused, runtime, inputs.profile.name)
    staying, moved = _without(legal, {name: [one for one in every if not one.refused] for name, every in found.items()})
    return Screened(legal, refused, staying, moved)


def _without(pools: Iterable[Pool], unwanted: dict[str, list[Misfit]]) -> tuple[tuple[Pool, ...], tuple[LeftOut, ...]]:
    """Operator by operator, so that a student with two of them counts once, for the first."""
    kept, left_out = [], []
    for pool in pools:
        rest = pool
        for misfit in unwanted[pool.name]:
            before, rest = rest.size, rest.lacking(misfit.kinds)
            if rest.size < before:
                left_out.append(LeftOut(space=pool.name, students=before - rest.size, misfit=misfit))
        kept.append(rest)
    return tuple(kept), tuple(left_out)


def _all_refused(count: int, refused: Iterable[LeftOut], runtime: RuntimeSupport, profile: str) -> InputError:
    reasons = dict.fromkeys(explain(one.misfit, runtime) for one in refused)
    fix = "name another --space, or put a runtime that takes it first in the profile"
    return InputError(
        f"no student of {count} can run: {'; '.join(reasons)}", where=f"runtimes of profile '{profile}'", fix=fix
    )


def screening_reasons(left_out: Iterable[LeftOut], runtime: RuntimeSupport) -> list[str]:
    """Who was not searched and why, a sentence each."""
    return [
        f"{'left out' if one.misfit.refused else 'set aside'}: {one.students:,} students of {one.space}, since "
        + explain(one.misfit, runtime)
        for one in left_out
    ]


def chosen_reasons(found: Iterable[Misfit], runtime: RuntimeSupport) -> list[str]:
    """What the selected student's own operators mean for its latency, a sentence each."""
    moved = [explain(misfit, runtime) for misfit in found]
    if not moved:
        return []
    told = "none that stays fits the budgets; the latency is predicted without the switch, whose cost nobody states"
    return [f"the student's {'; '.join(moved)}: {told}"]
