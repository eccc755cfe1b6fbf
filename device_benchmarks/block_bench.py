"""How right block tables are: networks that no table has seen, predicted and then timed, beside a FLOPs baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.block_build import CALIBRATION_NETWORKS, Progress, build_table, fit, sample, timed
from edgekd.device_benchmarks.block_table import Bench, BlockTable
from edgekd.students import Limits, Part, Prices, Selection, StageSpace, StudentSpec, parts_of, search

UNSEEN_SEED = 1000
PER_FAMILY = 9
BUDGET_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
PROMISES_PER_BUDGET, PROMISES_APART = 3, 7
FAMILIES = {"inverted": "inverted", "dense": "fused", "residual": "basic"}


class Row(Frozen):
    """One network: predicted before it was timed. flops_ms: proportional to multiply-adds, fitted like the table.

    anchored_ms: predicted by the same parts with the fit made anew from the calibration networks as they were timed
    beside this one: what is left when the machine is as it was, or its mood is known.
    """

    family: str
    predicted_ms: float
    anchored_ms: float
    flops_ms: float
    measured_ms: float


class Promise(Frozen):
    """A network that was found to fit a budget for its 90th percentile, and what it then took."""

    budget_ms: float
    predicted_p90_ms: float
    measured_p90_ms: float

    @property
    def holds(self) -> bool:
        """Whether the verdict was right."""
        return self.measured_p90_ms <= self.budget_ms


class Result(Frozen):
    """One runtime at one precision. promises: networks that a search under a budget chose, timed after it."""

    bench: Bench
    build_s: float
    parts: int
    rows: tuple[Row, ...]
    promises: tuple[Promise, ...] = ()

    def mape(self, of: str = "predicted_ms") -> float:
        """Mean |predicted / measured - 1|."""
        return float(np.mean(self.errors(of)))

    def within(self, share: float, of: str = "predicted_ms") -> float:
        """Fraction of the networks that are off by at most this."""
        return float(np.mean(self.errors(of) <= share))

    def spearman(self, of: str = "predicted_ms") -> float:
        """Rank correlation of predicted and measured."""
        from scipy.stats import spearmanr

        return float(spearmanr([getattr(row, of) for row in self.rows], [row.measured_ms for row in self.rows])[0])

    def errors(self, of: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Relative errors, one per network."""
        return np.array([abs(getattr(row, of) / row.measured_ms - 1) for row in self.rows])


def family_spaces(spaces: Sequence[StageSpace]) -> dict[str, StageSpace]:
    """The spaces cut down to one kind of block each."""
    found = {}
    for family, block in FAMILIES.items():
        for space in spaces:
            bodies = tuple(
                body._replace(choices=tuple(tuple(c for c in some if c.block == block) for some in body.choices))
                for body in space.bodies
            )
            if all(all(body.choices) for body in bodies):
                found[family] = StageSpace(space.name, space.in_channels, space.num_classes, bodies)
    return found


def bench_table(
    bench: Bench, spaces: Sequence[StageSpace], *, seconds: float, tell: Progress = lambda what: None
) -> tuple[BlockTable, Result]:
    """Build a table, predict unseen networks, then time them in a campaign of their own."""
    table = build_table(bench, spaces, seconds=seconds, tell=tell)
    calibration = [tuple(parts_of(spec)) for spec in sample(spaces, CALIBRATION_NETWORKS, seed=0)]
    unseen: list[tuple[str, tuple[Part, ...]]] = []
    for family, space in family_spaces(spaces).items():
        for spec in sample([space], PER_FAMILY, seed=UNSEEN_SEED):
            parts = tuple(parts_of(spec))
            if parts not in calibration:
                unseen.append((family, parts))
    promised = promises(table, spaces)
    networks = [*(parts for _, parts in unseen), *calibration, *(parts for _, parts in promised)]
    answer = timed(bench, [], networks, seconds=seconds / 3, seed=1, tell=tell)
    measured = [timing.p50_ms for timing in answer.networks]
    last = len(unseen) + len(calibration)
    anew = fit(table.parts_ms, calibration, answer.networks[len(unseen) : last])
    anchored = table.model_copy(update={"fit": anew})
    known = zip(calibration, measured[len(unseen) : last], strict=True)
    per_mac = float(np.median([ms / _macs(parts) for parts, ms in known]))
    rows = [
        Row(
            family=family,
            predicted_ms=table.p50_ms(parts),
            anchored_ms=anchored.p50_ms(parts),
            flops_ms=per_mac * _macs(parts),
            measured_ms=ms,
        )
        for (family, parts), ms in zip(unseen, measured[: len(unseen)], strict=True)
    ]
    kept = tuple(
        Promise(
            budget_ms=budget_ms,
            predicted_p90_ms=table.fit.p90_over_p50 * table.p50_ms(parts),
            measured_p90_ms=timing.p90_ms,
        )
        for (budget_ms, parts), timing in zip(promised, answer.networks[last:], strict=True)
    )
    parts_count = len(table.parts_ms)
    return table, Result(bench=bench, build_s=table.build_s, parts=parts_count, rows=tuple(rows), promises=kept)


class _Unlimited:
    """Costs of a search that only latency limits."""

    tariffs = ((0.0, 0.0),)

    def __init__(self, p90_over_p50: float) -> None:
        self.p90_over_p50 = p90_over_p50

    def memory_mib(self, weight_elements: int, peak_activation_elements: int) -> float:
        return 0.0

    def size_mib(self, weight_elements: int, kernels: int) -> float:
        return 0.0


def promises(table: BlockTable, spaces: Sequence[StageSpace]) -> list[tuple[float, tuple[Part, ...]]]:
    """(budget, network) for budgets over the range of the table's networks: what a search finds to fit, near the limit.

    As in a run, predictions are multiplied by the table's 95% before they are held against the budget.
    """
    prices = Prices(_Unlimited(table.fit.p90_over_p50), table.price, tariffs=table.tariffs)
    p90 = [table.fit.p90_over_p50 * network.p50_ms for network in table.networks]
    found: dict[tuple[Part, ...], float] = {}
    for budget_ms in map(float, np.quantile(p90, BUDGET_QUANTILES)):
        margin = max(1.0, table.fit.high)
        limits = Limits(
            latency_p90_ms=budget_ms, peak_memory_mib=1, artifact_size_mib=1, macs=10**15, time_margin=margin
        )
        for space in spaces:
            selection = search(space, cost=prices, limits=limits)
            if isinstance(selection, Selection):
                for candidate in selection.top[::PROMISES_APART][:PROMISES_PER_BUDGET]:
                    if isinstance(candidate.spec, StudentSpec):
                        found.setdefault(tuple(parts_of(candidate.spec)), budget_ms)
    return [(budget_ms, parts) for parts, budget_ms in found.items()]


def _macs(parts: Sequence[Part]) -> int:
    from edgekd.students.layers import part_layers

    return sum(layer.macs for part in parts for layer in part_layers(part))


def table_text(results: Sequence[Result]) -> str:
    """Markdown: one line per runtime and precision, then one per family."""
    columns = ("runtime", "precision", "networks", "n", "MAPE", "anchored MAPE", "within 10%", "Spearman")
    names = (*columns, "MAPE of MACs alone", "parts", "build s")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for result in results:
        groups = {"all": result, **{family: _only(result, family) for family in FAMILIES}}
        for family, some in groups.items():
            if some.rows:
                cells = (
                    f"{result.bench.runtime} {result.bench.version}",
                    result.bench.precision,
                    family,
                    f"{len(some.rows)}",
                    f"{some.mape():.1%}",
                    f"{some.mape('anchored_ms'):.1%}",
                    f"{some.within(0.1):.0%}",
                    f"{some.spearman():.3f}",
                    f"{some.mape('flops_ms'):.0%}",
                    f"{result.parts}",
                    f"{result.build_s:.0f}",
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def promises_text(results: Sequence[Result]) -> str:
    """Markdown: how many verdicts held."""
    lines = ["| runtime | precision | said to fit | held | p90 over budget at worst |", "|" + "---|" * 5]
    for result in results:
        if result.promises:
            held = np.mean([promise.holds for promise in result.promises])
            worst = max(promise.measured_p90_ms / promise.budget_ms for promise in result.promises)
            lines.append(
                f"| {result.bench.runtime} {result.bench.version} | {result.bench.precision} | "
                f"{len(result.promises)} | {held:.0%} | {worst:.2f} |"
            )
    return "\n".join(lines)


def page(results: Sequence[Result]) -> str:
    """The benchmark's page."""
    bench, fitted = results[0].bench, CALIBRATION_NETWORKS
    return f"""# Block tables: predicted against measured

Made by `edgekd bench lut` on {bench.device} ({bench.cpus} usable logical CPUs), {bench.threads} thread, batch 1.
A table is measured block by block and its sums are fitted to {fitted} networks; then {PER_FAMILY} unseen ones of each
family are predicted and timed in another process. MAPE: mean of |predicted / measured - 1| of the median latency; "MACs
alone": one factor per multiply-add, fitted to the same {fitted} networks. "Anchored": the fit made anew from the
{fitted} as they ran beside the unseen ones, which shows what of the error is the machine's mood between two campaigns.
All are written node by node in the form that the exporters give them, with random weights.

{table_text(results)}

**Said to fit**: at {len(BUDGET_QUANTILES)} budgets for the 90th percentile a search of each space chose networks (up
to {PROMISES_PER_BUDGET}) whose predicted p90, times the 95% of measured over predicted that the table's own networks
showed, keeps the budget. They were timed with the others; a verdict holds where the measured p90 is within the budget.

{promises_text(results)}
"""


def _only(result: Result, family: str) -> Result:
    return result.model_copy(update={"rows": tuple(row for row in result.rows if row.family == family)})
