"""All methods with one teacher, student, data and schedule: what each is worth over labels alone.

Every result is one line of `results.jsonl`, written when it is there; `resume` goes on behind the last one. The test
images are looked at once, at the end of a training; nothing is selected by them: that is `tuning.py`'s, on held-out
training images.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.protocol import Comparison, Settings, scaled
from edgekd.benchmarks.remembering import Remembered
from edgekd.data.dataset import Split
from edgekd.distill import Stage, evaluate, run_stage
from edgekd.distill.interrupts import Interrupted
from edgekd.distill.sources import Source
from edgekd.errors import EdgekdError, InputError
from edgekd.files import read_json, write_json, write_whole
from edgekd.recipes import Recipe, stages_of

OnRow = Callable[[dict[str, Any]], None]


def compare(
    comparison: Comparison,
    methods: dict[str, Recipe],
    *,
    seeds: tuple[int, ...],
    out: Path,
    resume: bool = False,
    on_row: OnRow | None = None,
) -> list[dict[str, Any]]:
    """Rows of all (seed, student, method), in this order; those in `out` already are kept where `resume`.

    Raises: InputError: `out` has results of another protocol, or has some and `resume` is off.
    """
    rows = begin(comparison, out, resume=resume)
    done = {(row["student"], row["method"], row["seed"]) for row in rows}
    trainer = Trainer(comparison, out)
    for seed, student, method in _cells(comparison, methods, seeds):
        if (student, method, seed) in done:
            continue
        cell = Cell(method, methods[method], student, seed, comparison.settings(student, method))
        rows.append({**cell.describe(), **_judged(trainer, cell)})
        append_row(out / "results.jsonl", rows[-1])
        if on_row is not None:
            on_row(rows[-1])
    return rows


def _cells(
    comparison: Comparison, methods: dict[str, Recipe], seeds: tuple[int, ...]
) -> Iterator[tuple[int, str, str]]:
    for seed in seeds:
        for student in comparison.students:
            yield from ((seed, student, method) for method in methods)


def describe(comparison: Comparison) -> dict[str, Any]:
    """What results must have in common to be in one table; the students are in the rows."""
    data, teacher = comparison.dataset, comparison.teacher
    return {
        "format": 1,
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "test_images": len(data.test),
        "teacher": teacher.name,
        "teacher_fingerprint": teacher.fingerprint,
        **dataclasses.asdict(comparison.protocol),
    }


def read_results(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what `describe` said, rows) of a folder. Raises: InputError: it has none."""
    about = out / "about.json"
    if not about.is_file():
        raise InputError("no results here", where=out, fix="run `edgekd bench methods --out` first")
    return read_json(about), read_rows(out / "results.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of rows; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One more line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, allow_nan=False) + "\n")


def begin(comparison: Comparison, out: Path, *, resume: bool) -> list[dict[str, Any]]:
    """The rows of the folder, which is made where it is not there. Raises: InputError: as `compare`."""
    about = out / "about.json"
    mine = describe(comparison)
    if about.is_file():
        if not resume:
            raise InputError("it has results already", where=out, fix="go on with --resume, or name another --out")
        kept, rows = read_results(out)
        same = {key: kept.get(key) for key in mine}
        if different := [key for key in mine if same[key] != mine[key]]:
            key = different[0]
            raise InputError(f"it has results with {key} {same[key]}, now {mine[key]}", where=out, fix="name another")
        return rows
    measured = evaluate(
        comparison.teacher.adapt(comparison.dataset.preprocessing),
        comparison.dataset.test,
        comparison.dataset.preprocessing,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.jsonl").touch()
    write_json(about, {**mine, "teacher_test_top1": measured.top1})
    return []


@dataclass(frozen=True)
class Cell:
    """One training of the comparison."""

    method: str
    recipe: Recipe
    student: str
    seed: int
    settings: Settings

    def describe(self) -> dict[str, Any]:
        """What its row begins with."""
        return {
            "student": self.student,
            "method": self.method,
            "seed": self.seed,
            **dataclasses.asdict(self.settings),
        }


@dataclass(frozen=True, eq=False)
class Trained:
    """A student that was taught, and what that took."""

    model: nn.Module
    steps: int
    students: int
    seconds: float
    cpu_s: float

    def costs(self) -> dict[str, Any]:
        """As they stand in a row."""
        return {
            "steps": self.steps,
            "students": self.students,
            "seconds": round(self.seconds, 2),
            "cpu_s": round(self.cpu_s, 2),
        }


class Trainer:
    """Trains cells of one comparison with a teacher that is asked once for each image and view."""

    def __init__(self, comparison: Comparison, out: Path) -> None:
        self.comparison, self.out = comparison, out
        self._remembered: dict[str, Remembered] = {}

    def train(self, cell: Cell) -> Trained:
        """Raises: EdgekdError: the method does not fit the networks. Interrupted: Ctrl-C."""
        folder = self.out / "work" / f"{cell.student.replace(':', '-')}-{cell.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        began, cpu, steps = time.perf_counter(), time.process_time(), 0
        try:
            made = self.comparison.materials(cell.student, cell.seed, cell.settings, self.out)
            stages = stages_of(scaled(cell.recipe, cell.settings.factor), made)
            for stage in stages:
                steps += run_stage(self._with_memory(stage), out=folder / stage.name).steps
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Trained(
            model=next(iter(stages[-1].students.values())),
            steps=steps,
            students=sum(len(stage.students) for stage in stages),
            seconds=time.perf_counter() - began,
            cpu_s=time.process_time() - cpu,
        )

    def accuracy(self, trained: Trained, split: Split) -> dict[str, float]:
        """top1 and nll on a split."""
        found = evaluate(trained.model, split, self.comparison.dataset.preprocessing)
        return {"top1": found.top1, "nll": found.nll}

    def _with_memory(self, stage: Stage) -> Stage:
        """The stage with the run's teacher answering from memory, where its views are the run's."""
        training, stage = stage.training, dataclasses.replace(stage, diagnose=False)
        key = f"{training.views} {training.view_seed} {training.shift_px}"
        if training.views is None or training.mixes:
            return stage
        teacher = self.comparison.teacher
        sources: dict[str, nn.Module | Source] = dict(stage.sources)
        for name, source in stage.sources.items():
            if isinstance(source, nn.Module) and getattr(source, "module", None) is teacher.module:
                if key not in self._remembered:
                    self._remembered[key] = Remembered(
                        source, stage.dataset, training, folder=self.out / "teachers", fingerprint=teacher.fingerprint
                    )
                sources[name] = self._remembered[key]
        return dataclasses.replace(stage, sources=sources)


def _judged(trainer: Trainer, cell: Cell) -> dict[str, Any]:
    """What one training came to on the test images and on all held-out ones, or why there is none."""
    try:
        trained = trainer.train(cell)
    except Interrupted:
        raise
    except EdgekdError as error:
        return {"refused": str(error)}
    data = trainer.comparison.dataset
    test, val = trainer.accuracy(trained, data.test), trainer.accuracy(trained, data.val)
    path = weights_path(trainer.out, cell.student, cell.method, cell.seed)
    write_whole(path, lambda temporary: torch.save(trained.model.state_dict(), temporary))
    return {
        "test_top1": test["top1"],
        "test_nll": test["nll"],
        "val_top1": val["top1"],
        **trained.costs(),
        "device": trainer.comparison.protocol.device,
    }


def weights_path(out: Path, student: str, method: str, seed: int) -> Path:
    """Where the weights of one training are kept."""
    return out / "weights" / f"{student.replace(':', '-')}--{method}--{seed}.pt"


__all__ = ["BASELINE", "Cell", "Trained", "Trainer", "append_row", "begin", "compare", "describe", "read_results"]
