"""How long and how often: the three modes as data, and the number of rounds and runs that fit into them. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from edgekd.artifact import Frozen

Mode = Literal["quick", "standard", "sustained"]


class Schedule(Frozen):
    """One mode. A round visits every contender twice (a random order, then its reverse: ABBA), a block each time.

    runs_min: per contender over all processes (64 make a p90). block_runs_max: for models so fast that their samples
    would fill the disk. contender_cap_s: measured time per contender that
    even a slow model may not pass, at the price of fewer rounds and runs. separate_run: one more process of each for
    memory, energy and a cold start; a benchmark of the times alone leaves it out.
    """

    name: str = "custom"
    processes: int
    rounds: int
    block_s: float
    runs_min: int
    block_runs_max: int
    contender_cap_s: float
    warm_up_s: float
    warm_up_cap_s: float
    separate_run: bool = True


MODES: dict[Mode, Schedule] = {
    "quick": Schedule(
        name="quick",
        processes=2,
        rounds=12,
        block_s=0.05,
        runs_min=64,
        block_runs_max=200,
        contender_cap_s=10,
        warm_up_s=0.3,
        warm_up_cap_s=1.5,
    ),
    "standard": Schedule(
        name="standard",
        processes=5,
        rounds=12,
        block_s=0.5,
        runs_min=1024,
        block_runs_max=2000,
        contender_cap_s=120,
        warm_up_s=1,
        warm_up_cap_s=30,
    ),
    # Heat builds up in one process that keeps going; fresh ones would let the device cool.
    "sustained": Schedule(
        name="sustained",
        processes=1,
        rounds=300,
        block_s=1,
        runs_min=1024,
        block_runs_max=2000,
        contender_cap_s=900,
        warm_up_s=1,
        warm_up_cap_s=30,
    ),
}
ROUNDS_MIN = 2
COLD_START_MATTERS_BELOW_S = 0.05


class BlockPlan(Frozen):
    """Rounds in each process; by contender, the runs of each block and those before it that are not counted.

    The uncounted ones bring weights back into the caches that the other contenders have just filled.
    """

    rounds: int
    runs: dict[str, int]
    lead_in: dict[str, int]


def plan_blocks(schedule: Schedule, seconds_per_run: Mapping[str, float]) -> BlockPlan:
    """The slowest contender sets the rounds that all share; each gets the runs that its own speed allows.

    >>> plan = plan_blocks(MODES["quick"], {"fast": 0.0005, "slow": 0.15})
    >>> plan.rounds, plan.runs, plan.lead_in
    (8, {'fast': 100, 'slow': 2}, {'fast': 10, 'slow': 0})
    """
    leg_s = schedule.contender_cap_s / schedule.processes / 2  # of one process, one half of the ABBA
    rounds = _rounds(schedule, leg_s, max(seconds_per_run.values()))
    blocks = 2 * rounds * schedule.processes
    runs, lead_in = {}, {}
    for name, run_s in seconds_per_run.items():
        wanted = max(-(-schedule.runs_min // blocks), min(schedule.block_runs_max, int(schedule.block_s / run_s)))
        runs[name] = max(1, min(wanted, int(leg_s / rounds / run_s)))
        lead_in[name] = max(1, runs[name] // 10) if run_s < COLD_START_MATTERS_BELOW_S else 0
    return BlockPlan(rounds=rounds, runs=runs, lead_in=lead_in)


def _rounds(schedule: Schedule, leg_s: float, slowest_s: float) -> int:
    """The most rounds that leave the slowest contender its minimum of runs, or one run a round when it has too few."""
    needed = -(-schedule.runs_min // (2 * schedule.processes))
    for rounds in range(schedule.rounds, ROUNDS_MIN - 1, -1):
        if rounds * int(leg_s / rounds / slowest_s) >= needed:
            return rounds
    return max(ROUNDS_MIN, min(schedule.rounds, int(leg_s / slowest_s)))


def abba(names: list[str], rng: random.Random) -> list[str]:
    """A random order and its reverse, so that a linear drift within the round falls on all alike.

    >>> order = abba(["a", "b", "c"], random.Random(0))
    >>> order[:3] == order[:2:-1]
    True
    """
    order = rng.sample(names, len(names))
    return order + order[::-1]
