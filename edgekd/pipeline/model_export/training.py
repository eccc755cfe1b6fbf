"""Quantisation-aware training of an exported model: its int8 self learns from its float self, on the training split.

No labels and no recipe are needed: the loss is the KL divergence from the float model's classes at temperature 1.
Source: Krishnamoorthi 2018, section 3.2; Bhardwaj et al. 2024 (quantised nets that learn from their float selves).
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekd.data import Dataset
from edgekd.distill import Milestone, Progress, SoftTarget, Stage, StageResult, Term, Training, run_stage
from edgekd.errors import InputError
from edgekd.pipeline.events import Events
from edgekd.pipeline.model_export.inputs import ModelInputs
from edgekd.pipeline.model_export.request import ModelExportSettings
from edgekd.pipeline.quantising import FREEZE_RANGES_AT, FREEZE_STATISTICS_AT
from edgekd.pipeline.teaching import detail, epoch_line, epoch_row
from edgekd.quant import QatModel, convert, prepare_qat
from edgekd.targets.spec import QuantSpec

BATCH = 64


def refuse_untrainable(inputs: ModelInputs, settings: ModelExportSettings) -> None:
    """Raises: InputError: `--qat-epochs` was given for something that cannot be trained on."""
    if not settings.qat_epochs:
        return
    if inputs.outputs == "all":
        what = "a .pt2 program is in eval mode for good"
        raise InputError(what, where="--qat-epochs", fix="give the PyTorch model (timm:, torchvision:, a .safetensors)")
    if not inputs.labelled:
        raise InputError("the model does not name the data's classes", where="--qat-epochs", fix="leave it out")


def trained_int8(
    inputs: ModelInputs, settings: ModelExportSettings, spec: QuantSpec, example: Tensor, events: Events
) -> tuple[ExportedProgram, tuple[dict[str, Any], ...]]:
    """The int8 program after `settings.qat_epochs` epochs, and a row for each of them.

    example: normalised training images for the first ranges.
    """
    torch.manual_seed(settings.seed)
    learner = copy.deepcopy(inputs.module).requires_grad_(True)  # it was loaded to be read only
    qat = prepare_qat(learner, example, spec)
    with tempfile.TemporaryDirectory(prefix="edgekd-qat-") as folder:
        result = _train(inputs, settings, qat, Path(folder), events)
    return convert(qat), tuple(epoch_row(record) for record in result.history)


def stage_from_float(qat: QatModel, itself: nn.Module, dataset: Dataset, training: Training) -> Stage:
    """One stage in which a model with fake quantisation learns from its float self.

    training: epochs, batch, rate, shifts, seed and device count; the rest is set to what suits a model that is nearly
    right. Ranges and statistics stand still for the last steps, which so train against the grid that is shipped.
    """
    return Stage(
        name="quantise",
        dataset=dataset,
        students={"int8": qat},
        sources={"float": itself},
        terms=[Term(SoftTarget(temperature=1.0), source="float", student="int8")],
        training=dataclasses.replace(
            training, optimiser="adamw", schedule="cosine", warmup=0.05, weight_decay=0.0, clip_norm=1.0
        ),
        milestones=(
            Milestone(FREEZE_RANGES_AT, qat.freeze_observers),
            Milestone(FREEZE_STATISTICS_AT, qat.freeze_bn_statistics),
        ),
    )


def _train(
    inputs: ModelInputs, settings: ModelExportSettings, qat: QatModel, folder: Path, events: Events
) -> StageResult:
    dataset = dataclasses.replace(inputs.dataset, preprocessing=inputs.preprocessing)
    training = Training(
        epochs=settings.qat_epochs,
        batch_size=min(BATCH, len(inputs.dataset.train)),
        learning_rate=settings.qat_learning_rate,
        shift_px=max(1, inputs.preprocessing.image_size // 16),
        seed=settings.seed,
    )
    stage = stage_from_float(qat, copy.deepcopy(inputs.module), dataset, training)

    def tell(progress: Progress) -> None:
        events.progress("quantisation-aware training", progress.step, progress.total_steps, detail(progress))
        if progress.epoch_record is not None:
            events.note(epoch_line(progress.epoch_record))

    return run_stage(stage, out=folder, on_progress=tell)
