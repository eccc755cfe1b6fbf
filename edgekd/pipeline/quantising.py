"""Stage `quantise`: quantisation-aware distillation to an int8 program, and post-training quantisation beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from edgekd.distill import Milestone, WithTaps, evaluation_of
from edgekd.export.check_reference import PROVEN_ON, answering
from edgekd.pipeline.context import Context, calibration_batches
from edgekd.pipeline.distilling import stage_for, terms_for
from edgekd.pipeline.resolution import taught_at
from edgekd.pipeline.teaching import teach
from edgekd.quant import QatModel, convert, prepare_qat, ptq, save_program
from edgekd.targets.spec import QuantSpec

# Share of the steps after which ranges and batch norm statistics stand still, so that the last steps train against the
# grid that will be shipped (Krishnamoorthi 2018, section 3.2.1).
FREEZE_RANGES_AT, FREEZE_STATISTICS_AT = 0.6, 0.7


def quantise(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: the QAT history, and test accuracies of the int8 programs: `quantised` (QAT) and `ptq`."""
    if context.plan.precision != "int8":
        why = f"{context.plan.precision} needs no quantisation-aware training"
        context.events.note(f"nothing to do: {why}")
        return {"skipped": why, "trainings": [], "accuracy": {}}, []
    spec, batches = quant_spec(context), calibration(context)
    after = ptq(context.student(), batches, spec)
    trained, history = train(context, context.student(), spec, batches[0])
    program = convert(trained)
    path = save_program(program, context.program("int8"))
    accuracy = {
        "quantised": program_accuracy(context, program, "QAT"),
        "ptq": program_accuracy(context, after, "PTQ"),
    }
    for who, found in accuracy.items():
        context.events.note(
            f"int8 {'after QAT' if who == 'quantised' else 'by PTQ'}: test top-1 {found['top1']:.2%} of {found['n']}"
        )
    return {"trainings": [history], "accuracy": accuracy, "spec": spec.model_dump(mode="json")}, [path]


def train_again(context: Context) -> None:
    """Only the training of this stage, as a process that follows takes part in it."""
    if context.plan.precision == "int8":
        train(context, context.student(), quant_spec(context), calibration(context)[0])


def calibration(context: Context) -> list[torch.Tensor]:
    """The calibration batches of this run: from the training split, stratified."""
    return calibration_batches(context.student_dataset, context.settings.calibration_images, seed=context.settings.seed)


def quant_spec(context: Context) -> QuantSpec:
    """The profile's scheme and weight bits."""
    return QuantSpec(scheme=context.plan.scheme or "affine", weight_bits=context.profile.quantisation.weight_bits)


def train(
    context: Context, student: nn.Module, spec: QuantSpec, example: torch.Tensor
) -> tuple[QatModel, dict[str, Any]]:
    """The student with fake quantisation, distilled on from its float weights."""
    image_size = context.student_spec().image_size
    terms, _ = terms_for(context, student, image_size)
    taps = tuple(dict.fromkeys(tap for term in terms for tap in term.loss.needs().student))
    torch.manual_seed(context.settings.seed)
    qat = prepare_qat(WithTaps(student, taps) if taps else student, example, spec)
    stage = stage_for(
        context,
        "quantise",
        taught_at(qat, image_size),
        terms,
        epochs=context.settings.training.qat_epochs,
        learning_rate=context.settings.training.qat_learning_rate,
        milestones=(
            Milestone(FREEZE_RANGES_AT, qat.freeze_observers),
            Milestone(FREEZE_STATISTICS_AT, qat.freeze_bn_statistics),
        ),
    )
    return qat, teach(context, stage)


def program_accuracy(context: Context, program: ExportedProgram, which: str) -> dict[str, Any]:
    """Test accuracy of a batch-1 program, run in torch: the figure that every runtime is compared with."""
    split, normalise = context.student_dataset.test, context.student_dataset.preprocessing.normalise
    answer = answering(program, normalise(split.images(range(min(len(split), PROVEN_ON)))))
    logits = []
    for index in torch.split(torch.arange(len(split)), 256):
        logits.append(answer(normalise(split.images(index))))
        context.events.progress(f"testing int8 ({which})", int(index[-1]) + 1, len(split), "")
    return evaluation_of(torch.cat(logits), split.labels).to_dict()
