"""What can go wrong in a stage, by name and with what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_stage import QUICK, taught_stage, tiny_net
from torch import nn

from edgekd.data.dataset import Dataset
from edgekd.distill import (
    CrossEntropy,
    SoftTarget,
    Term,
    Training,
    last_path,
    run_stage,
)
from edgekd.distill.losses import make_loss
from edgekd.errors import CheckError, InputError


def test_a_diverging_loss_stops_the_stage_and_names_term_step_and_cure(tiny_dataset: Dataset, tmp_path: Path) -> None:
    training = dataclasses.replace(QUICK, learning_rate=1e30, warmup=0.0)
    stage = taught_stage(tiny_dataset, tiny_net(), training=training)
    with pytest.raises(
        CheckError, match=r"stage 'distil', step \d: loss term '\w+' became nan or inf; lower the learning rate"
    ):
        run_stage(stage, out=tmp_path)
    assert not last_path(tmp_path).exists()


def test_a_teacher_that_returns_nan_is_named(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net())
    with torch.no_grad():
        stage.sources["teacher"].fc.bias[3] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(
        CheckError, match=r"step 0: source 'teacher' returns nan or inf, so loss term 'soft_target_kl' does"
    ):
        run_stage(stage, out=tmp_path)


def test_a_teacher_whose_decisions_are_nan_is_named(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """The argmax of nan is a class like any other."""
    stage = taught_stage(tiny_dataset, tiny_net(), terms=[Term(make_loss("hard_label"), source="teacher")])
    with torch.no_grad():
        stage.sources["teacher"].fc.bias[3] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(CheckError, match=r"step 0: source 'teacher' returns nan or inf, so loss term 'hard_label' doe"):
        run_stage(stage, out=tmp_path)


def test_a_teacher_of_other_classes_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net(), sources={"teacher": tiny_net(classes=100)})
    with pytest.raises(
        InputError, match="term 'soft_target_kl': the student has 10 classes, the teacher 100; use a teacher"
    ):
        run_stage(stage, out=tmp_path)


def test_a_student_of_other_classes_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"student 'student' gives logits \(100, 7\); the data has 10 classes"):
        run_stage(taught_stage(tiny_dataset, tiny_net(classes=7)), out=tmp_path)


def test_a_model_for_other_images_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    stage = taught_stage(tiny_dataset, tiny_net(), sources={"teacher": teacher})
    with pytest.raises(InputError, match=r"Sequential cannot run on images \(100, 1, 28, 28\)"):
        run_stage(stage, out=tmp_path)


def test_an_unknown_source_is_named_with_the_nearest(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net(), terms=[Term(SoftTarget(), source="techer")])
    with pytest.raises(InputError, match="unknown source 'techer'; did you mean 'teacher'"):
        run_stage(stage, out=tmp_path)


def test_a_stage_whose_terms_all_weigh_nothing_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net(), terms=[Term(CrossEntropy(), weight=0.0)])
    with pytest.raises(InputError, match="every term has weight 0"):
        run_stage(stage, out=tmp_path)


def test_two_terms_of_one_name_are_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net(), terms=[Term(CrossEntropy()), Term(CrossEntropy())])
    with pytest.raises(InputError, match="two terms are named 'cross_entropy'"):
        run_stage(stage, out=tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": -1}, {"learning_rate": float("nan")}, {"warmup": 1.0}, {"clip_norm": 0.0}],
    ids=str,
)
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"training: {next(iter(wrong))} .* is out of range"):
        Training(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net(), training=dataclasses.replace(QUICK, device="cuda"))
    with pytest.raises(InputError, match="device 'cuda' is not available"):
        run_stage(stage, out=tmp_path)
