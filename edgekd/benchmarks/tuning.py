"""Learning rates and term weights for a short schedule, settled on held-out training images; never on test images.

Hill climbing on a ladder: from where it stands to the better neighbour, until neither is better, so that no setting is
kept because the ladder ended there. The baseline's learning rate comes first; then each method's weight and rate in
turns until neither changes, from the usual rate and the published weight, so that none ends worse than as published.
One seed that is not judged; the whole schedule. A row of `tuning.jsonl` each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.methods import Cell, OnRow, Trainer, append_row, begin, read_rows
from edgekd.benchmarks.protocol import LEARNING_RATE, Comparison, Optimiser, Settings
from edgekd.distill.interrupts import Interrupted
from edgekd.errors import EdgekdError
from edgekd.recipes import Recipe

SEED = 100
FACTORS = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
RATES: Mapping[Optimiser, tuple[float, ...]] = {
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "adamw": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
FILE = "tuning.jsonl"


def tune(
    comparison: Comparison, methods: Mapping[str, Recipe], *, out: Path, resume: bool = False, on_row: OnRow
) -> Comparison:
    """The comparison with settings for each (student, method); trials in `out` already are kept where `resume`.

    A method that refuses the networks keeps its published weight. Raises: InputError: as `compare`.
    """
    begin(comparison, out, resume=resume)
    trials = _Trials(Trainer(comparison, out), methods, read_rows(out / FILE), on_row)
    tuned = {}
    for student in comparison.students:
        optimiser = comparison.optimiser(student)
        rates = RATES[optimiser]
        usual = Settings(LEARNING_RATE[optimiser])
        tuned[student, BASELINE] = trials.rate(student, BASELINE, usual, rates)
        for method in (name for name in methods if name != BASELINE):
            tuned[student, method] = trials.both(student, method, usual, rates)
    return dataclasses.replace(comparison, tuned=tuned)


def climbed(ladder: Sequence[float], start: float, value: Callable[[float], float]) -> float:
    """The rung reached from `start` by going to the better neighbour until there is none; of equals the one stood on.

    >>> climbed((1, 2, 3, 4, 5), 3, lambda rung: -abs(rung - 5))
    5
    """
    at = ladder.index(start)
    while True:
        near = [rung for rung in (at, at - 1, at + 1) if 0 <= rung < len(ladder)]
        best = max(near, key=lambda rung: value(ladder[rung]))
        if best == at:
            return ladder[at]
        at = best


@dataclasses.dataclass(frozen=True, eq=False)
class _Trials:
    trainer: Trainer
    methods: Mapping[str, Recipe]
    rows: list[dict[str, Any]]
    on_row: OnRow

    def both(self, student: str, method: str, start: Settings, rates: Sequence[float]) -> Settings:
        """Weight and rate in turns: with SGD a step is as long as their product, so that one asks for the other."""
        found = start
        while True:
            better = self.rate(student, method, self.factor(student, method, found), rates)
            if better == found:
                return found
            found = better

    def rate(self, student: str, method: str, start: Settings, rates: Sequence[float]) -> Settings:
        """`start` with the learning rate of the greatest held-out accuracy."""

        def value(rate: float) -> float:
            return self._accuracy(student, method, dataclasses.replace(start, learning_rate=rate))

        return dataclasses.replace(start, learning_rate=climbed(rates, start.learning_rate, value))

    def factor(self, student: str, method: str, start: Settings) -> Settings:
        """`start` with the factor on the published weights of the greatest held-out accuracy."""

        def value(factor: float) -> float:
            return self._accuracy(student, method, dataclasses.replace(start, factor=factor))

        return dataclasses.replace(start, factor=climbed(FACTORS, start.factor, value))

    def _accuracy(self, student: str, method: str, settings: Settings) -> float:
        cell = Cell(method, self.methods[method], student, SEED, settings)
        asked = cell.describe()
        row = next((row for row in self.rows if asked.items() <= row.items()), None)
        if row is None:
            row = {**asked, **self._outcome(cell)}
            self.rows.append(row)
            append_row(self.trainer.out / FILE, row)
            self.on_row(row)
        return float(row.get("val_top1", 0.0))

    def _outcome(self, cell: Cell) -> dict[str, Any]:
        try:
            trained = self.trainer.train(cell)
        except Interrupted:
            raise
        except EdgekdError as error:
            return {"refused": str(error)}
        return {
            "val_top1": self.trainer.accuracy(trained, self.trainer.comparison.dataset.val)["top1"],
            **trained.costs(),
        }
