"""How right block tables are: networks that no table has seen, predicted and then timed, beside a FLOPs baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.block_build import CALIBRATION_NETWORKS, Progress, build_table, sample, timed
from edgekd.device_benchmarks.block_table import Bench, BlockTable
from edgekd.students import Part, StageSpace, parts_of

UNSEEN_SEED = 1000
PER_FAMILY = 9
FAMILIES = {"inverted": "inverted", "dense": "fused", "residual": "basic"}


class Row(Frozen):
    """One network: predicted before it was timed. flops_ms: proportional to multiply-adds, fitted like the table."""

    family: str
    predicted_ms: float
    flops_ms: float
    measured_ms: float


class Result(Frozen):
    """One runtime at one precision."""

    bench: Bench
    build_s: float
    parts: int
    rows: tuple[Row, ...]

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
    answer = timed(bench, [], [*(parts for _, parts in unseen), *calibration], seconds=seconds / 3, seed=1, tell=tell)
    measured = [timing.p50_ms for timing in answer.networks]
    known = zip(calibration, measured[len(unseen) :], strict=True)
    per_mac = float(np.median([ms / _macs(parts) for parts, ms in known]))
    rows = [
        Row(
            family=family,
            predicted_ms=table.p50_ms(parts),
            flops_ms=per_mac * _macs(parts),
            measured_ms=ms,
        )
        for (family, parts), ms in zip(unseen, measured[: len(unseen)], strict=True)
    ]
    return table, Result(bench=bench, build_s=table.build_s, parts=len(table.parts_ms), rows=tuple(rows))


def _macs(parts: Sequence[Part]) -> int:
    from edgekd.students.layers import part_layers

    return sum(layer.macs for part in parts for layer in part_layers(part))


def table_text(results: Sequence[Result]) -> str:
    """Markdown: one line per runtime and precision, then one per family."""
    head = (
        "| runtime | precision | networks | n | MAPE | within 10% | Spearman | MAPE of MACs alone | parts | build s |"
    )
    lines = [head, "|" + "---|" * 10]
    for result in results:
        groups = {"all": result, **{family: _only(result, family) for family in FAMILIES}}
        for family, some in groups.items():
            if some.rows:
                lines.append(
                    f"| {result.bench.runtime} {result.bench.version} | {result.bench.precision} | {family} | "
                    f"{len(some.rows)} | {some.mape():.1%} | {some.within(0.1):.0%} | {some.spearman():.3f} | "
                    f"{some.mape('flops_ms'):.0%} | {result.parts} | {result.build_s:.0f} |"
                )
    return "\n".join(lines)


def page(results: Sequence[Result]) -> str:
    """The benchmark's page."""
    bench, fitted = results[0].bench, CALIBRATION_NETWORKS
    return f"""# Block tables: predicted against measured

Made by `edgekd bench lut` on {bench.device} ({bench.cpus} usable logical CPUs), {bench.threads} thread, batch 1.
A table is measured block by block and its sums are fitted to {fitted} networks; then {PER_FAMILY} unseen ones of each
family are predicted and timed in another process. MAPE: mean of |predicted / measured - 1| of the median latency; "MACs
alone": one factor per multiply-add, fitted to the same {fitted} networks. All are written node by node in the form that
the exporters give them, with random weights.

{table_text(results)}
"""


def _only(result: Result, family: str) -> Result:
    return result.model_copy(update={"rows": tuple(row for row in result.rows if row.family == family)})
