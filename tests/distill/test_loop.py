"""A stage learns, counts and ends as it says."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_stage import QUICK, same_weights, taught_stage, tiny_net
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import (
    CrossEntropy,
    Hint,
    Interrupted,
    Loss,
    Milestone,
    Progress,
    Signals,
    SoftTarget,
    Stage,
    Term,
    Training,
    WithTaps,
    evaluate,
    last_path,
    run_stage,
    student_weights,
)
from edgekd.distill.batches import Batch, BatchStream, Share
from edgekd.distill.checkpoint import best_path, load
from edgekd.distill.optimiser import learning_rate_at

# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_cross_entropy_alone_learns_the_tiny_data(tiny_dataset: Dataset, tmp_path: Path, optimiser: str) -> None:
    rate = {"sgd": 0.3, "adamw": 0.02}[optimiser]
    training = dataclasses.replace(QUICK, epochs=6, learning_rate=rate, optimiser=optimiser, clip_norm=5.0)
    student = tiny_net(dropout=0.0)
    result = run_stage(
        Stage("baseline", tiny_dataset, {"student": student}, [Term(CrossEntropy())], {}, training), out=tmp_path
    )
    assert result.val_accuracy > 0.6, "chance is 0.1"
    assert evaluate(student, tiny_dataset.test, tiny_dataset.preprocessing).top1 > 0.6
    assert result.history[-1].losses["cross_entropy"] < result.history[0].losses["cross_entropy"]


def test_a_student_learns_from_a_teacher_alone(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """No labels: whatever the student knows of the classes, the teacher told it."""
    training = dataclasses.replace(QUICK, epochs=8, learning_rate=0.3, clip_norm=5.0)
    teacher, student = tiny_net(seed=1, width=16, dropout=0.0), tiny_net(dropout=0.0)
    run_stage(
        Stage("teacher", tiny_dataset, {"student": teacher}, [Term(CrossEntropy())], {}, training),
        out=tmp_path / "teacher",
    )
    terms = [Term(SoftTarget(temperature=2.0), source="teacher"), Term(Hint("features", "features"), source="teacher")]
    stage = Stage("distil", tiny_dataset, {"student": student}, terms, {"teacher": teacher}, training)
    result = run_stage(stage, out=tmp_path / "student")
    assert result.val_accuracy > 0.5
    assert result.history[-1].losses["hint"] < result.history[0].losses["hint"]


class Loud(Loss):
    """Its own parameter has a huge gradient; the student has none of it."""

    name = "loud"

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(()))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return 1e6 * self.own


def test_what_a_loss_learns_takes_nothing_of_the_students_clipped_step(tiny_dataset: Dataset, tmp_path: Path) -> None:
    training = dataclasses.replace(QUICK, clip_norm=0.5)
    found = []
    for name, terms in (("alone", [Term(CrossEntropy())]), ("beside", [Term(CrossEntropy()), Term(Loud())])):
        student = tiny_net()
        run_stage(Stage("distil", tiny_dataset, {"student": student}, terms, {}, training), out=tmp_path / name)
        found.append(student)
    assert same_weights(*found)


def test_the_teacher_is_not_changed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, tiny_net())
    run_stage(stage, out=tmp_path)
    assert same_weights(stage.sources["teacher"], tiny_net(seed=9, width=16))  # type: ignore[arg-type]


def test_two_students_may_teach_each_other(tiny_dataset: Dataset, tmp_path: Path) -> None:
    students = {"a": tiny_net(seed=1), "b": tiny_net(seed=2, width=4)}
    terms = [
        Term(SoftTarget(temperature=1.0), student="a", source="b", name="a from b"),
        Term(CrossEntropy(), student="b"),
    ]
    before = {name: {k: v.clone() for k, v in s.state_dict().items()} for name, s in students.items()}
    run_stage(Stage("mutual", tiny_dataset, students, terms, {}, QUICK), out=tmp_path)
    for name, student in students.items():
        assert not torch.equal(student.fc.weight, before[name]["fc.weight"]), name
    assert student_weights(last_path(tmp_path), "b")["fc.weight"].shape == (10, 8)


def test_a_student_that_returns_its_taps_learns_as_one_with_hooks(tiny_dataset: Dataset, tmp_path: Path) -> None:
    hooked, returning = tiny_net(), WithTaps(tiny_net(), ["features.-1"])
    run_stage(taught_stage(tiny_dataset, hooked), out=tmp_path / "a")
    run_stage(taught_stage(tiny_dataset, returning), out=tmp_path / "b")
    assert same_weights(hooked, returning.model)


def test_a_loss_sees_float32_though_the_models_run_in_bfloat16(tiny_dataset: Dataset, tmp_path: Path) -> None:
    seen = []

    class Spy(Loss):
        name = "spy"

        def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
            product = student.logits @ student.logits.T
            seen.append((student.logits.dtype, teacher.logits.dtype, product.dtype))
            return product.mean()

    training = dataclasses.replace(QUICK, mixed_precision="bf16", epochs=0.2)
    stage = taught_stage(tiny_dataset, tiny_net(), terms=[Term(Spy(), source="teacher")], training=training)
    assert run_stage(stage, out=tmp_path).precision == "bf16"
    assert set(seen) == {(torch.float32,) * 3}


# ---------------------------------------------------------------------- data and schedule


def stream_of(dataset: Dataset, batch_size: int, share: Share | None = None, **changes: object) -> BatchStream:
    training = dataclasses.replace(QUICK, batch_size=batch_size, epochs=3, **changes)
    return BatchStream(dataset, training, device=torch.device("cpu"), share=share or Share())


def test_every_image_is_seen_once_per_epoch_though_the_batch_does_not_divide_them(tiny_dataset: Dataset) -> None:
    with stream_of(tiny_dataset, 250) as stream:
        seen = torch.cat([stream.index(step) for step in range(12)])
    assert len(tiny_dataset.train) == 600
    for epoch in range(5):
        assert torch.equal(seen[600 * epoch : 600 * (epoch + 1)].sort().values, torch.arange(600))
    assert not torch.equal(seen[:600], seen[600:1200])


def test_a_batch_depends_only_on_the_seed_and_the_step(tiny_dataset: Dataset) -> None:
    with (
        stream_of(tiny_dataset, 64) as one,
        stream_of(tiny_dataset, 64) as other,
        stream_of(tiny_dataset, 64, seed=4) as third,
    ):
        taken = [one.take(step) for step in range(3)]
        assert torch.equal(taken[2].images, other.take(2).images)
        assert not torch.equal(taken[2].index, third.take(2).index)


def test_the_processes_shares_make_up_the_batch_of_one_process(tiny_dataset: Dataset) -> None:
    with (
        stream_of(tiny_dataset, 64) as whole,
        stream_of(tiny_dataset, 64, Share(0, 2)) as a,
        stream_of(tiny_dataset, 64, Share(1, 2)) as b,
    ):
        batch = whole.at(5)
        assert torch.equal(batch.images[0::2], a.at(5).images)
        assert torch.equal(batch.images[1::2], b.at(5).images)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_the_learning_rate_climbs_to_its_peak_and_falls_to_nearly_zero(schedule: str) -> None:
    training = Training(learning_rate=0.5, schedule=schedule, warmup=0.25)  # type: ignore[arg-type]
    rates = [learning_rate_at(step, 100, training) for step in range(100)]
    assert max(rates) == rates[24] == 0.5
    assert rates[:25] == sorted(rates[:25])
    assert rates[24:] == sorted(rates[24:], reverse=True)
    assert 0 < rates[-1] < 0.01


# ---------------------------------------------------------------------- progress and results


def test_progress_tells_steps_rate_time_left_and_each_epoch(tiny_dataset: Dataset, tmp_path: Path) -> None:
    heard: list[Progress] = []
    stage = taught_stage(tiny_dataset, tiny_net(), training=dataclasses.replace(QUICK, epochs=2))
    result = run_stage(stage, out=tmp_path, on_progress=heard.append)
    records = [p.epoch_record for p in heard if p.epoch_record]
    assert tuple(records) == result.history
    assert [r.step for r in records] == [6, 12]
    assert heard[-1].step == heard[-1].total_steps == result.steps == 12
    assert heard[-1].eta_s == 0
    assert all(p.images_per_s > 0 for p in heard)
    assert set(heard[-1].losses) == {"cross_entropy", "soft_target_kl", "hint"}


def test_best_pt_holds_the_epoch_of_the_best_validation_accuracy(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = taught_stage(tiny_dataset, student := tiny_net(), training=dataclasses.replace(QUICK, epochs=3))
    result = run_stage(stage, out=tmp_path)
    student.load_state_dict(student_weights(best_path(tmp_path)))
    assert evaluate(student, tiny_dataset.val, tiny_dataset.preprocessing).top1 == pytest.approx(
        result.best_val_accuracy
    )
    assert result.best_val_accuracy == max(r.val_accuracy for r in result.history)


def test_the_caller_gets_its_student_back_plain(tiny_dataset: Dataset, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    stage = taught_stage(tiny_dataset, student := tiny_net())
    state = torch.get_rng_state()
    run_stage(stage, out=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not student.training
    assert all(p.is_contiguous() for p in student.parameters())
    assert not any(m._forward_hooks for m in student.modules())


# ---------------------------------------------------------------------- early stopping and float16


def test_training_stops_without_progress_on_held_out_images_and_ends_with_the_best_weights(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """The rate climbs until the student diverges: the best epoch is an early one."""
    training = dataclasses.replace(QUICK, epochs=30, learning_rate=8.0, warmup=0.9, patience=2)
    stage = Stage("baseline", tiny_dataset, {"student": tiny_net()}, [Term(CrossEntropy())], {}, training)
    result = run_stage(stage, out=tmp_path)
    assert len(result.history) < 30
    assert result.best_epoch == len(result.history) - 2
    top1 = evaluate(stage.students["student"], tiny_dataset.val, tiny_dataset.preprocessing).top1
    assert top1 == pytest.approx(result.best_val_accuracy)
    again = dataclasses.replace(stage, students={"student": tiny_net(5)})
    assert run_stage(again, out=tmp_path, resume=True).history == result.history, "a stopped stage is only loaded"
    assert same_weights(again.students["student"], stage.students["student"])


def test_float16_scales_the_loss_and_resumes_with_its_scale(tiny_dataset: Dataset, tmp_path: Path) -> None:
    training = dataclasses.replace(QUICK, mixed_precision="fp16", epochs=2)
    stop = Milestone(7 / 12, lambda: os.kill(os.getpid(), signal.SIGINT))
    whole, resumed = tiny_net(), tiny_net()
    result = run_stage(taught_stage(tiny_dataset, whole, training=training), out=tmp_path / "a")
    assert result.precision == "fp16"
    with pytest.raises(Interrupted):
        run_stage(taught_stage(tiny_dataset, tiny_net(), training=training, milestones=[stop]), out=tmp_path / "b")
    assert load(last_path(tmp_path / "b"))["scaler"]["scale"] > 1
    run_stage(taught_stage(tiny_dataset, resumed, training=training), out=tmp_path / "b", resume=True)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, tiny_net())
