"""A stage learns, counts, stops and starts again as it says."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
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
from edgekd.distill.losses import make_loss
from edgekd.distill.optimiser import learning_rate_at
from edgekd.errors import CheckError, InputError

QUICK = Training(epochs=1, batch_size=100, learning_rate=0.2, device="cpu", seed=3, shift_px=1)


class TinyNet(nn.Module):
    """A strided CNN with batch norm and dropout: everything that could make a resumed run differ."""

    def __init__(self, width: int = 8, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=4), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 2, stride=2)
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x).relu().mean((2, 3))))


def tiny_net(seed: int = 0, **options: float) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(**options)  # type: ignore[arg-type]


def taught_terms() -> list[Term]:
    return [
        Term(CrossEntropy(label_smoothing=0.1), weight=0.5),
        Term(SoftTarget(temperature=2.0), source="teacher"),
        Term(Hint("features.-1", "features"), source="teacher", weight=lambda progress: 1 - progress),
    ]


def taught_stage(dataset: Dataset, student: nn.Module, **changes: object) -> Stage:
    teacher = tiny_net(seed=9, width=16)
    stage = Stage("distil", dataset, {"student": student}, taught_terms(), {"teacher": teacher}, QUICK)
    return dataclasses.replace(stage, **changes)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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


# ---------------------------------------------------------------------- stopping and resuming


def test_ctrl_c_saves_and_a_resumed_run_ends_bit_for_bit_the_same(tiny_dataset: Dataset, tmp_path: Path) -> None:
    two = dataclasses.replace(QUICK, epochs=2)
    fired: list[str] = []

    def run(folder: str, student: nn.Module, resume: bool, stop_at: int | None) -> Progress | None:
        act = lambda: fired.append(folder)  # noqa: E731
        stop = [] if stop_at is None else [Milestone(stop_at / 12, lambda: os.kill(os.getpid(), signal.SIGINT))]
        stage = taught_stage(tiny_dataset, student, training=two, milestones=[Milestone(0.25, act), *stop])
        return run_stage(stage, out=tmp_path / folder, resume=resume)

    whole = tiny_net()
    expected = run("whole", whole, False, None)
    with pytest.raises(Interrupted, match=r"stage 'distil': interrupted at step 8 of 12; go on with --resume"):
        run("cut", tiny_net(), False, 7)
    before = fired.count("cut")
    resumed = tiny_net(seed=77)
    result = run("cut", resumed, True, None)
    assert same_weights(whole, resumed)
    assert fired.count("cut") > before, "a milestone that lies behind is repeated on resume"
    losses = [record.losses for record in result.history]
    assert losses == [record.losses for record in expected.history]


class Versioned(nn.Module):
    """Loads its state the old way where the state has no version, as quantisation observers do."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loaded = tiny_net(), 0

    def _load_from_state_dict(self, state: dict, prefix: str, metadata: dict, *rest: object) -> None:
        self.loaded = metadata.get("version", 1)
        super()._load_from_state_dict(state, prefix, metadata, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_checkpoint_keeps_the_versions_of_its_modules(tiny_dataset: Dataset, tmp_path: Path) -> None:
    terms = [Term(CrossEntropy())]
    run_stage(taught_stage(tiny_dataset, Versioned(), terms=terms), out=tmp_path)
    run_stage(taught_stage(tiny_dataset, resumed := Versioned(), terms=terms), out=tmp_path, resume=True)
    assert resumed.loaded == 3


def test_resuming_a_finished_stage_only_loads_it(tiny_dataset: Dataset, tmp_path: Path) -> None:
    first = tiny_net()
    result = run_stage(taught_stage(tiny_dataset, first), out=tmp_path)
    heard: list[Progress] = []
    again = run_stage(
        taught_stage(tiny_dataset, second := tiny_net(5)), out=tmp_path, resume=True, on_progress=heard.append
    )
    assert same_weights(first, second)
    assert again == result
    assert heard == []


def test_a_checkpoint_of_another_stage_is_not_resumed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run_stage(taught_stage(tiny_dataset, tiny_net(), name="distil"), out=tmp_path)
    result = run_stage(taught_stage(tiny_dataset, tiny_net(), name="quantise"), out=tmp_path, resume=True)
    assert result.stage == "quantise"
    assert load(last_path(tmp_path))["identity"]["stage"] == "quantise"


def test_a_checkpoint_of_other_settings_is_refused_and_names_the_setting(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run_stage(taught_stage(tiny_dataset, tiny_net()), out=tmp_path)
    changed = dataclasses.replace(QUICK, learning_rate=0.1)
    with pytest.raises(InputError, match=r"last\.pt: the checkpoint was written with learning_rate 0\.2, now 0\.1"):
        run_stage(taught_stage(tiny_dataset, tiny_net(), training=changed), out=tmp_path, resume=True)


def test_a_checkpoint_of_a_loss_with_other_options_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run_stage(taught_stage(tiny_dataset, tiny_net()), out=tmp_path)
    first, _, third = taught_terms()
    hotter = [first, Term(SoftTarget(temperature=9.0), source="teacher"), third]
    with pytest.raises(InputError, match=r"term 2 \(soft_target_kl\) .*temperature 9\.0"):
        run_stage(taught_stage(tiny_dataset, tiny_net(), terms=hotter), out=tmp_path, resume=True)
    steeper = [*taught_terms()[:2], dataclasses.replace(third, weight=lambda progress: 1 - 2 * progress)]
    with pytest.raises(InputError, match=r"term 3 \(hint\) weight \[1\.0, 0\.75, .* now weight \[1\.0, 0\.5, "):
        run_stage(taught_stage(tiny_dataset, tiny_net(), terms=steeper), out=tmp_path, resume=True)


def test_a_cut_checkpoint_is_named(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run_stage(taught_stage(tiny_dataset, tiny_net()), out=tmp_path)
    path = last_path(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last\.pt: not a whole checkpoint; delete it"):
        run_stage(taught_stage(tiny_dataset, tiny_net()), out=tmp_path, resume=True)


def test_a_full_disk_keeps_the_old_checkpoint(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(taught_stage(tiny_dataset, tiny_net()), out=tmp_path)
    old = last_path(tmp_path).read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="no space left on the disk"):
        run_stage(taught_stage(tiny_dataset, tiny_net()), out=tmp_path)
    assert last_path(tmp_path).read_bytes() == old


def test_milestones_fire_before_their_step_and_after_each_validation(tiny_dataset: Dataset, tmp_path: Path) -> None:
    student, modes = tiny_net(), []

    def freeze() -> None:
        modes.append(student.features[1].training)
        student.features[1].eval()

    before = student.features[1].running_mean.clone()
    stage = taught_stage(
        tiny_dataset, student, milestones=[Milestone(0.0, freeze)], training=dataclasses.replace(QUICK, epochs=2)
    )
    run_stage(stage, out=tmp_path)
    assert torch.equal(student.features[1].running_mean, before)
    assert modes[0] is True


# ---------------------------------------------------------------------- what can go wrong


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
