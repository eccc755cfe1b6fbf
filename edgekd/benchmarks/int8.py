"""The best methods in int8: after training, after quantisation alone and after QAT, in torch and as a LiteRT file."""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.methods import weights_path
from edgekd.benchmarks.protocol import Comparison
from edgekd.data.dataset import Dataset
from edgekd.distill import Training, evaluate, evaluation_of, run_stage
from edgekd.distill.interrupts import Interrupted
from edgekd.errors import EdgekdError
from edgekd.export.check_reference import PROVEN_ON, answering
from edgekd.export.request import ExportRequest
from edgekd.export.runner import export_one
from edgekd.pipeline.context import calibration_batches
from edgekd.pipeline.model_export.training import stage_from_float
from edgekd.quant import convert, prepare_qat, ptq, save_program
from edgekd.targets.spec import QuantSpec
from edgekd.teachers.black_box import open_black_box

CALIBRATION_IMAGES, QAT_SHARE, QAT_LEARNING_RATE = 512, 0.1, 1e-4  # share: of the training's epochs
Row = Mapping[str, Any]


def best_methods(rows: Sequence[Row], student: str, count: int) -> list[str]:
    """The methods of the greatest mean accuracy on the held-out images (never the test's), the baseline left out."""
    by_method: dict[str, list[float]] = {}
    for row in rows:
        if row["student"] == student and row["method"] != BASELINE and "val_top1" in row:
            by_method.setdefault(row["method"], []).append(row["val_top1"])
    return sorted(by_method, key=lambda method: -statistics.fmean(by_method[method]))[:count]


def quantise_best(
    comparison: Comparison, rows: Sequence[Row], *, count: int, out: Path, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """int8 rows of the best methods of each student, with the first seed's weights; those in `out` already are kept."""
    path = out / "int8.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    for student in comparison.students:
        for method in best_methods(rows, student, count):
            seed = min(row["seed"] for row in rows if (row["student"], row["method"]) == (student, method))
            if any((row["student"], row["method"]) == (student, method) for row in found):
                continue
            row = {"student": student, "method": method, "seed": seed}
            try:
                row |= _quantised(comparison, student, weights_path(out, student, method, seed), seed, out)
            except Interrupted:
                raise
            except EdgekdError as error:
                row["refused"] = str(error)
            found.append(row)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, allow_nan=False) + "\n")
            on_row(row)
    return found


def _quantised(comparison: Comparison, student: str, weights: Path, seed: int, out: Path) -> dict[str, float]:
    data = comparison.dataset
    work = out / "int8" / weights.stem
    batches = calibration_batches(data, CALIBRATION_IMAGES, seed=seed)
    spec = QuantSpec(scheme="affine", weight_bits=8)

    def model() -> nn.Module:
        made = comparison.new_student(student, seed)(1.0, 0)
        made.load_state_dict(torch.load(weights, weights_only=True))
        return made.eval()

    accuracies = {"float": evaluate(model(), data.test, data.preprocessing).top1}
    qat = _trained_on(comparison, model(), batches[0], spec, seed, work)
    for name, program in (("ptq", ptq(model(), batches, spec)), ("qat", qat)):
        accuracies[name] = _in_torch(program, data)
        accuracies[f"{name}_litert"] = _in_litert(program, data, work / name)
    return accuracies


def _trained_on(
    comparison: Comparison, student: nn.Module, example: torch.Tensor, spec: QuantSpec, seed: int, work: Path
) -> ExportedProgram:
    """The student with fake quantisation, taught by its float self as `edgekd export --qat-epochs` does it.

    The method's own teacher would teach another thing than the method did, and be credited to it.
    """
    data = comparison.dataset
    torch.manual_seed(seed)
    itself = copy.deepcopy(student)
    qat = prepare_qat(student, example, spec)
    training = Training(
        epochs=QAT_SHARE * comparison.protocol.epochs,
        batch_size=comparison.protocol.batch_size,
        learning_rate=QAT_LEARNING_RATE,
        shift_px=comparison.protocol.shift_px,
        seed=seed,
        device="cpu",
        mixed_precision="no",
    )
    stage = dataclasses.replace(stage_from_float(qat, itself, data, training), diagnose=False)
    run_stage(stage, out=work / "training")
    return convert(qat)


def _in_torch(program: ExportedProgram, data: Dataset) -> float:
    normalise = data.preprocessing.normalise
    answer = answering(program, normalise(data.test.images(range(min(len(data.test), PROVEN_ON)))))
    parts = [answer(normalise(data.test.images(index))) for index in torch.split(torch.arange(len(data.test)), 256)]
    return evaluation_of(torch.cat(parts), data.test.labels).top1


def _in_litert(program: ExportedProgram, data: Dataset, folder: Path) -> float:
    """Accuracy of the exported file, run by LiteRT on every test image."""
    folder.mkdir(parents=True, exist_ok=True)
    path = save_program(program, folder / "int8.pt2")
    request = ExportRequest(
        target="tflite",
        precision="int8",
        program=path,
        out=folder / "tflite",
        preprocessing=data.preprocessing.to_dict(),
    )
    artifact = export_one(request, log=folder / "tflite.log")
    own = data.preprocessing
    box, _ = open_black_box(artifact.path, channels=own.channels, image_size=own.image_size)
    return evaluate(box, data.test, own).top1


def int8_table(rows: Sequence[Row]) -> str:
    """Accuracies in percent, a row for each method."""
    names = ("float", "ptq", "ptq_litert", "qat", "qat_litert")
    lines = [
        "| student | method | float | PTQ, torch | PTQ, LiteRT | QAT, torch | QAT, LiteRT |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{100 * row[n]:.2f}" for n in names] if "refused" not in row else [f"not run: {row['refused']}"]
        lines.append(f"| {row['student']} | {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)
