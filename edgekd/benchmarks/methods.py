"""All methods with one teacher, student, data and schedule: what each is worth over labels alone.

Every result is one line of `results.jsonl`, written when it is there; `resume` goes on behind the last one. The test
images are looked at once, at the end of a training; nothing is selected by them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.remembering import Remembered
from edgekd.data.dataset import Dataset, View, stratified_order
from edgekd.distill import Stage, Training, evaluate, run_stage
from edgekd.distill.batches import seed_of
from edgekd.distill.interrupts import Interrupted
from edgekd.distill.sources import Source
from edgekd.errors import EdgekdError, InputError
from edgekd.files import write_whole
from edgekd.recipes import Materials, Recipe, stages_of
from edgekd.teachers import Teacher
from edgekd.teachers.architectures import build

VAL_IMAGES = 500
OnRow = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Protocol:
    """What is the same for all methods. images: of the training split, by class in their proportions, None: all.

    views: augmentations of each image that are ever seen; the teacher is asked once for each. clip_norm holds for the
    baseline too: some published weights blow up in the first steps of a short schedule.
    """

    epochs: float = 10.0
    images: int | None = None
    batch_size: int = 64
    learning_rate: float = 0.1
    shift_px: int = 4
    views: int = 2
    clip_norm: float = 5.0
    device: str = "auto"

    def training(self, seed: int) -> Training:
        """The loop's settings for one seed."""
        return Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            shift_px=self.shift_px,
            views=self.views,
            clip_norm=self.clip_norm,
            seed=seed,
            mixed_precision="auto" if self.device == "cuda" else "no",
            device=self.device,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """One teacher and its students on one dataset. students: names that `edgekd.teachers.architectures` builds."""

    dataset: Dataset
    teacher: Teacher
    students: tuple[str, ...]
    protocol: Protocol

    def __post_init__(self) -> None:
        for student in self.students:
            self.new_student(student, 0)(1.0, 0)

    def new_student(self, name: str, seed: int) -> Callable[[float, int], nn.Module]:
        """(width factor, number) -> an untrained student. Raises: InputError: no such network."""
        own = self.dataset.preprocessing

        def new(width: float, number: int) -> nn.Module:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed_of(seed, "student", number))
                return build(
                    widened(name, width),
                    num_classes=self.dataset.num_classes,
                    in_channels=own.channels,
                    image_size=own.image_size,
                )

        return new


def widened(name: str, factor: float) -> str:
    """The name of the same network with other channels. Raises: InputError: its name has no width.

    >>> widened("edgekd:resnet8-8", 2.0), widened("edgekd:vit4-64-4", 1.6), widened("timm:resnet18", 1.0)
    ('edgekd:resnet8-16', 'edgekd:vit4-96-4', 'timm:resnet18')
    """
    if factor == 1:
        return name
    if match := re.fullmatch(r"edgekd:resnet(\d+)(?:-(\d+))?", name):
        return f"edgekd:resnet{match[1]}-{max(2, 2 * round(int(match[2] or 16) * factor / 2))}"
    if match := re.fullmatch(r"edgekd:vit(\d+)-(\d+)-(\d+)", name):
        return f"edgekd:vit{match[1]}-{max(32, 32 * round(int(match[2]) * factor / 32))}-{match[3]}"
    raise InputError(f"'{name}' comes in one width only", fix="use edgekd:resnetD-W or edgekd:vitP-W-L as the student")


def subset(dataset: Dataset, images: int | None) -> Dataset:
    """The data with fewer training images (all where None) and at most VAL_IMAGES held-out ones; the test stays whole.

    Raises: InputError: more than there are.
    """
    if images is not None and not 0 < images <= len(dataset.train):
        raise InputError(f"{images} of {len(dataset.train)} training images", where="--images")
    rows = stratified_order(dataset.train.labels, 0)[:images]
    val = stratified_order(dataset.val.labels, 0)[:VAL_IMAGES]
    fingerprint = dataset.fingerprint if images is None else f"{dataset.fingerprint}-{images}"
    train, held_out = View(dataset.train, rows), View(dataset.val, val)
    return dataclasses.replace(dataset, fingerprint=fingerprint, train=train, val=held_out)


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
    rows = _begin(comparison, out, resume=resume)
    done = {(row["student"], row["method"], row["seed"]) for row in rows}
    remembered: dict[str, Remembered] = {}
    for seed, student, method in _cells(comparison, methods, seeds):
        if (student, method, seed) in done:
            continue
        row = _one(comparison, Cell(method, methods[method], student, seed), out, remembered)
        rows.append({"student": student, "method": method, "seed": seed, **row})
        with (out / "results.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(rows[-1], allow_nan=False) + "\n")
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
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(about.read_text(encoding="utf-8")), [json.loads(line) for line in lines if line.endswith("}")]


def _begin(comparison: Comparison, out: Path, *, resume: bool) -> list[dict[str, Any]]:
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
    document = json.dumps({**mine, "teacher_test_top1": measured.top1}, indent=1)
    write_whole(about, lambda path: _write(path, document))
    return []


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Cell:
    """One training of the comparison."""

    method: str
    recipe: Recipe
    student: str
    seed: int


def _one(comparison: Comparison, cell: Cell, out: Path, remembered: dict[str, Remembered]) -> dict[str, Any]:
    """One training, or why there is none."""
    folder = out / "work" / f"{cell.student.replace(':', '-')}-{cell.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        stages = stages_of(cell.recipe, materials(comparison, cell.student, cell.seed, out))
        steps = 0
        for stage in stages:
            steps += run_stage(_with_memory(stage, comparison, remembered), out=folder / stage.name).steps
            model = next(iter(stage.students.values()))
    except Interrupted:
        raise
    except EdgekdError as error:
        return {"refused": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    data = comparison.dataset
    test, val = (evaluate(model, split, data.preprocessing) for split in (data.test, data.val))
    path = weights_path(out, cell.student, cell.method, cell.seed)
    write_whole(path, lambda temporary: torch.save(model.state_dict(), temporary))
    return {
        "test_top1": test.top1,
        "test_nll": test.nll,
        "val_top1": val.top1,
        "steps": steps,
        "students": sum(len(stage.students) for stage in stages),
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "device": comparison.protocol.device,
    }


def materials(comparison: Comparison, student: str, seed: int, out: Path) -> Materials:
    """What a recipe of the comparison is made of."""
    data = comparison.dataset
    return Materials(
        dataset=data,
        teachers={"teacher": comparison.teacher.adapt(data.preprocessing)},
        new_student=comparison.new_student(student, seed),
        training=comparison.protocol.training(seed),
        fingerprints={"teacher": comparison.teacher.fingerprint},
        cache=out / "teachers",
    )


def _with_memory(stage: Stage, comparison: Comparison, remembered: dict[str, Remembered]) -> Stage:
    """The stage with the run's teacher answering from memory, where its views are the run's."""
    training, stage = stage.training, dataclasses.replace(stage, diagnose=False)
    key = f"{training.views} {training.view_seed} {training.shift_px}"
    if training.views is None or training.mixes:
        return stage
    sources: dict[str, nn.Module | Source] = dict(stage.sources)
    for name, source in stage.sources.items():
        if isinstance(source, nn.Module) and getattr(source, "module", None) is comparison.teacher.module:
            remembered.setdefault(key, Remembered(source, comparison.dataset, training, bfloat16=False))
            sources[name] = remembered[key]
    return dataclasses.replace(stage, sources=sources)


def weights_path(out: Path, student: str, method: str, seed: int) -> Path:
    """Where the weights of one training are kept."""
    return out / "weights" / f"{student.replace(':', '-')}--{method}--{seed}.pt"


__all__ = ["BASELINE", "Comparison", "Protocol", "compare", "describe", "read_results", "subset", "weights_path"]
