"""Learning rates and term weights for a short schedule, settled on held-out training images; never on test images.

The baseline's learning rate is chosen first and holds for all methods of the student; then each method's weight is, as
a factor on the published one. One seed that is not judged; the whole schedule. A row of `tuning.jsonl` each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.methods import Cell, OnRow, Trainer, append_row, begin, read_rows
from edgekd.benchmarks.protocol import Comparison, Optimiser, Settings
from edgekd.distill.interrupts import Interrupted
from edgekd.errors import EdgekdError
from edgekd.recipes import Recipe

SEED = 100
FACTORS = (1.0, 0.25, 4.0)
RATES: Mapping[Optimiser, tuple[float, ...]] = {"sgd": (0.1, 0.03, 0.3), "adamw": (1e-3, 3e-4, 3e-3)}
FILE = "tuning.jsonl"


def tune(
    comparison: Comparison, methods: Mapping[str, Recipe], *, out: Path, resume: bool = False, on_row: OnRow
) -> Comparison:
    """The comparison with settings for each (student, method); trials in `out` already are kept where `resume`.

    A method that refuses the networks keeps the published weight. Raises: InputError: as `compare`.
    """
    begin(comparison, out, resume=resume)
    trials = _Trials(Trainer(comparison, out), methods, read_rows(out / FILE), on_row)
    tuned = {}
    for student in comparison.students:
        rates = RATES[comparison.optimiser(student)]
        tuned[student, BASELINE] = first = trials.best(student, BASELINE, [Settings(rate) for rate in rates])
        for method in (name for name in methods if name != BASELINE):
            options = [Settings(first.learning_rate, factor) for factor in FACTORS]
            tuned[student, method] = trials.best(student, method, options)
    return dataclasses.replace(comparison, tuned=tuned)


@dataclasses.dataclass(frozen=True, eq=False)
class _Trials:
    trainer: Trainer
    methods: Mapping[str, Recipe]
    rows: list[dict[str, Any]]
    on_row: OnRow

    def best(self, student: str, method: str, options: list[Settings]) -> Settings:
        """Of the settings the one of the greatest held-out accuracy; of equal ones the first."""
        return max(options, key=lambda settings: self._accuracy(student, method, settings))

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
