"""Teachers that learn, attack or are several: what they say is what their papers say, and a stopped run goes on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset, TensorSplit, View
from edgekd.distill import (
    Attacker,
    Box,
    CrossEntropy,
    Discriminator,
    Interrupted,
    MeanTeacher,
    Milestone,
    Pass,
    PlainView,
    Pool,
    Signals,
    SoftTarget,
    Stage,
    TemporalEnsemble,
    Term,
    Training,
    last_path,
    robust_accuracy,
    run_stage,
    student_weights,
)
from edgekd.distill.attack import perturb
from edgekd.distill.batches import Batch
from edgekd.distill.checkpoint import load
from edgekd.distill.losses import make_loss
from edgekd.distill.pool import confidence_weights, label_weights
from edgekd.errors import InputError

QUICK = Training(epochs=2, batch_size=100, learning_rate=0.1, device="cpu", seed=3, shift_px=1, mixed_precision="no")


class Net(nn.Module):
    """Two convolutions with batch norm and dropout."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(1, width, 4, stride=4), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.second(self.first(x)).relu().mean((2, 3))))


def soft(source: str, student: str = "student", temperature: float = 4.0) -> Term:
    return Term(SoftTarget(temperature=temperature), source=source, student=student, name=f"{student} <- {source}")


def two_teachers(dataset: Dataset) -> Stage:
    pool = Pool({"a": Net(12, 7), "b": Net(8, 8)}, weighting="labels")
    return stage_of(dataset, [Term(CrossEntropy()), soft("pool")], {"pool": pool})


def mean_teacher(dataset: Dataset) -> Stage:
    student = Net(4, 1)
    sources = {"average": MeanTeacher(student, decay=0.9)}
    return stage_of(dataset, [Term(CrossEntropy()), soft("average")], sources, student=student)


def temporal_ensemble(dataset: Dataset) -> Stage:
    sources = {"past": TemporalEnsemble(dataset)}
    return stage_of(dataset, [Term(CrossEntropy()), soft("past", temperature=1.0)], sources)


def plain_view(dataset: Dataset) -> Stage:
    student = Net(4, 1)
    return stage_of(
        dataset, [Term(CrossEntropy()), soft("plain")], {"plain": PlainView(student, dataset)}, student=student
    )


def own_teacher(dataset: Dataset) -> Stage:
    return stage_of(dataset, [Term(CrossEntropy()), Term(make_loss("byot", student_tap=["first", "second"]))], {})


def peers(dataset: Dataset) -> Stage:
    stage = stage_of(dataset, [Term(CrossEntropy(), student=name, name=f"{name} alone") for name in "abc"], {})
    mutual = [
        Term(SoftTarget(temperature=1.0), 0.5, source=b, student=a, name=f"{a} <- {b}")
        for a in "abc"
        for b in "abc"
        if a != b
    ]
    students = {name: Net(4, seed) for seed, name in enumerate("abc")}
    return dataclasses.replace(stage, students=students, terms=[*stage.terms, *mutual])


def game(dataset: Dataset) -> Stage:
    judge = Discriminator(hidden=16)
    terms = [Term(CrossEntropy()), Term(Pass(judge, student_tap="second", teacher_tap="second"), 0.1, source="teacher")]
    return dataclasses.replace(stage_of(dataset, terms, {"teacher": Net(8, 9)}), players={"judge": judge})


def robust(dataset: Dataset) -> Stage:
    attacker = Attacker(Box(steps=2), against="teacher")
    return dataclasses.replace(
        stage_of(dataset, [soft("teacher")], {"teacher": Net(8, 9)}), players={"attacker": attacker}
    )


def averaged_and_mixed(dataset: Dataset) -> Stage:
    stage = stage_of(dataset, [Term(CrossEntropy(label_smoothing=0.1)), soft("teacher")], {"teacher": Net(8, 9)})
    training = dataclasses.replace(QUICK, ema_decay=0.9, mixup=0.2, cutmix=1.0, accumulate=2, schedule="cosine")
    return dataclasses.replace(stage, training=training)


def stage_of(dataset: Dataset, terms: list[Term], sources: dict, student: nn.Module | None = None) -> Stage:
    return Stage("distil", dataset, {"student": student or Net(4, 1)}, terms, sources, QUICK)


METHODS = [
    two_teachers,
    mean_teacher,
    temporal_ensemble,
    plain_view,
    own_teacher,
    peers,
    game,
    robust,
    averaged_and_mixed,
]


def states(stage: Stage) -> list[Tensor]:
    return [value for model in stage.students.values() for value in model.state_dict().values()]


@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
def test_a_stopped_run_goes_on_bit_for_bit_with_every_players_state(
    make: Callable[[Dataset], Stage], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    whole = make(tiny_dataset)
    expected = run_stage(whole, out=tmp_path / "whole")
    stop = Milestone(7 / 12, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="step 8 of 12"):
        run_stage(dataclasses.replace(make(tiny_dataset), milestones=[stop]), out=tmp_path / "cut")
    resumed = make(tiny_dataset)
    result = run_stage(resumed, out=tmp_path / "cut", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(states(whole), states(resumed), strict=True))
    assert [r.losses for r in result.history] == [r.losses for r in expected.history]
    players = (load(last_path(tmp_path / run))["players"] for run in ("whole", "cut"))
    first, second = (flattened(state) for state in players)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert bool(first) == (make in (mean_teacher, temporal_ensemble, game))


def flattened(state: object) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for value in state.values() for t in flattened(value)] if isinstance(state, dict) else []


# ---------------------------------------------------------------------- several teachers


def batch_of(labels: list[int]) -> Batch:
    y = torch.tensor(labels)
    return Batch(torch.randn(len(y), 1, 28, 28), y, torch.arange(len(y)), step=0, progress=0.0)


def test_a_pool_at_the_losss_temperature_is_the_mean_of_the_softened_distributions() -> None:
    a, b = Net(4, 1).eval(), Net(4, 2).eval()
    batch = batch_of([0, 1, 2])
    pool = Pool({"a": a, "b": b}, temperature=3.0)
    pool.bind(batch.images, [])
    said = pool.signals(batch)
    with torch.no_grad():
        expected = ((a(batch.images) / 3).softmax(1) + (b(batch.images) / 3).softmax(1)) / 2
    torch.testing.assert_close((said.logits / 3).softmax(1), expected)


def test_a_pools_gradient_is_that_of_the_weighted_divergences_from_each_teacher() -> None:
    teachers = torch.randn(3, 5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    weights = label_weights(teachers, labels)
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    mixed = (weights.unsqueeze(-1) * teachers.softmax(-1)).sum(0).log()
    mine = torch.autograd.grad(
        SoftTarget(temperature=1.0)(Signals(student), Signals(mixed), batch_of([0] * 5)), student
    )
    p = teachers.softmax(-1)
    each = (p * (p.log() - student.log_softmax(1))).sum(-1)
    theirs = torch.autograd.grad((weights * each).sum(0).mean(), student)
    torch.testing.assert_close(mine[0], theirs[0])


def test_the_weights_of_ca_mkd_prefer_who_is_right_about_this_image() -> None:
    logits = torch.tensor([[[2.0, 0, 0], [2.0, 0, 0]], [[0, 2.0, 0], [0, 2.0, 0]], [[0, 0, 0], [0, 0, 0]]])
    weights = label_weights(logits, torch.tensor([0, 1]))
    ce = torch.tensor([[-2.0, 0, 0], [0, -2.0, 0]]).T + logits.logsumexp(-1)
    expected = (1 - ce.exp() / ce.exp().sum(0)) / 2
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    assert weights[:, 0].argmax() == 0
    assert weights[:, 1].argmax() == 1


def test_confidence_weights_prefer_who_is_sure_without_labels() -> None:
    weights = confidence_weights(torch.tensor([[[9.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([1]))
    assert weights[0, 0] > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": {"a": Net(4, 1)}}, "a pool needs at least two teachers"),
        ({"weighting": "labls"}, "no weighting 'labls'; did you mean 'labels'"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_a_pool_says_what_is_wrong(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pool(**{"members": {"a": Net(4, 1), "b": Net(4, 2)}, **options})


def test_a_pools_tap_names_its_member() -> None:
    pool = Pool({"a": Net(4, 1), "b": Net(8, 2)})
    assert pool.bind(torch.zeros(2, 1, 28, 28), ["b/first"]).taps["b/first"].shape == (2, 8, 7, 7)
    with pytest.raises(InputError, match="tap 'first' names no member of the pool; write MEMBER/TAP"):
        pool.bind(torch.zeros(2, 1, 28, 28), ["first"])


# ---------------------------------------------------------------------- own predictions


def test_the_mean_teacher_is_the_moving_average_of_the_student(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = mean_teacher(tiny_dataset)
    student, start = stage.students["student"], Net(4, 1)
    run_stage(dataclasses.replace(stage, training=dataclasses.replace(QUICK, epochs=1 / 6)), out=tmp_path)
    average = load(last_path(tmp_path))["players"]["source average"]["average"]
    torch.testing.assert_close(average["fc.weight"], (start.fc.weight + student.fc.weight).detach() / 2)


def test_a_temporal_ensemble_averages_past_predictions_and_corrects_the_start(tiny_dataset: Dataset) -> None:
    past = TemporalEnsemble(tiny_dataset, momentum=0.6)
    batch = batch_of([0, 1])
    past.bind(batch.images, [])
    torch.testing.assert_close(past.signals(batch).logits.exp(), torch.full((2, 10), 0.1))
    said = [torch.randn(2, 10) for _ in range(3)]
    for logits in said:
        past.after(batch, {"student": Signals(logits)}, {})
    p = [logits.softmax(1) for logits in said]
    expected = (0.36 * 0.4 * p[0] + 0.6 * 0.4 * p[1] + 0.4 * p[2]) / (1 - 0.6**3)
    torch.testing.assert_close(past.signals(batch).logits.exp(), expected)


def test_a_plain_view_is_the_students_answer_to_the_image_before_augmentation(tiny_dataset: Dataset) -> None:
    student = Net(4, 1)
    student.dropout.p = 0.0
    view = PlainView(student, tiny_dataset)
    images = tiny_dataset.preprocessing.normalise(tiny_dataset.train.images([4, 9]))
    view.bind(images, [])
    student.train()
    before = student.first[1].running_mean.clone()
    moved = dataclasses.replace(batch_of([0, 0]), index=torch.tensor([4, 9]))
    said = view.signals(moved).logits
    assert student.training
    assert torch.equal(before, student.first[1].running_mean)
    assert all(norm.track_running_stats for norm in student.modules() if isinstance(norm, nn.BatchNorm2d))
    torch.testing.assert_close(said, student(images), msg="normalised by the batch, as the augmented images are")
    assert not torch.allclose(said, student.eval()(images))


# ---------------------------------------------------------------------- adversaries


def test_a_discriminator_learns_to_tell_two_models_apart(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = game(tiny_dataset)
    run_stage(dataclasses.replace(stage, training=dataclasses.replace(QUICK, epochs=6)), out=tmp_path)
    judge = stage.players["judge"]
    assert isinstance(judge, Discriminator)
    images = tiny_dataset.preprocessing.normalise(tiny_dataset.val.images(range(100)))
    student, teacher = stage.students["student"], stage.sources["teacher"]
    loss = stage.terms[1].loss
    with torch.no_grad():
        mine = judge.net(loss.projector(student.second(student.first(images)).mean((2, 3))))
        theirs = judge.net(teacher.second(teacher.first(images)).mean((2, 3)))  # type: ignore[union-attr,operator]
    assert theirs.mean() > mine.mean()


def test_the_students_optimiser_leaves_the_discriminator_alone(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = game(tiny_dataset)
    run_stage(stage, out=tmp_path)
    saved = load(last_path(tmp_path))
    assert set(saved["losses"]) == {"1.projector.weight", "1.projector.bias"}
    assert saved["players"]["judge"]["net"]["0.weight"].shape == (16, 16)


def test_a_discriminator_that_nobody_asks_is_named(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = dataclasses.replace(game(tiny_dataset), terms=[Term(CrossEntropy())])
    with pytest.raises(InputError, match="a discriminator that no loss asks"):
        run_stage(stage, out=tmp_path)


def test_an_attack_stays_in_its_box_and_among_valid_pixels_and_hurts(tiny_dataset: Dataset) -> None:
    model, preprocessing = Net(4, 1).eval(), tiny_dataset.preprocessing
    images, labels = preprocessing.normalise(tiny_dataset.val.images(range(20))), tiny_dataset.val.labels[:20]
    climb = lambda logits: nn.functional.cross_entropy(logits, labels)  # noqa: E731
    torch.manual_seed(0)
    moved = perturb(model, images, climb, box=Box(epsilon=0.1, step=0.03), preprocessing=preprocessing)
    std, mean = preprocessing.std[0], preprocessing.mean[0]
    assert float((moved - images).abs().max()) * std <= 0.1 + 1e-6
    pixels = moved * std + mean
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    assert climb(model(moved)) > climb(model(images)) + 0.1


def test_robust_distillation_makes_a_student_more_robust(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """The same net, data and steps; one saw attacked images."""
    box, found = Box(epsilon=16 / 255, step=4 / 255, steps=3), {}
    teacher = Net(12, 5)
    training = dataclasses.replace(QUICK, epochs=8, learning_rate=0.3, clip_norm=5.0)
    alone = Stage("teacher", tiny_dataset, {"student": teacher}, [Term(CrossEntropy())], {}, training)
    run_stage(alone, out=tmp_path / "t")
    for name, players in (("plain", {}), ("robust", {"attacker": Attacker(box)})):
        stage = stage_of(tiny_dataset, [soft("teacher")], {"teacher": teacher})
        run_stage(dataclasses.replace(stage, players=players, training=training), out=tmp_path / name)
        found[name] = robust_accuracy(stage.students["student"], tiny_dataset.val, tiny_dataset.preprocessing, box=box)
    assert found["robust"] > found["plain"] + 0.02, found


def test_robust_accuracy_is_what_withstands_both_attacks(tiny_dataset: Dataset) -> None:
    """No more than what is right unattacked; all of it where the box is a point; less and less as it grows."""
    model, preprocessing = Net(4, 1).eval(), tiny_dataset.preprocessing
    split = View(tiny_dataset.val, torch.arange(40))
    images = preprocessing.normalise(split.images(range(40)))
    with torch.no_grad():
        labels = torch.where(torch.arange(40) < 30, model(images).argmax(1), 3)
    relabelled = TensorSplit(split.images(range(40)), labels)
    plain = float((model(images).argmax(1) == labels).float().mean())

    def within(epsilon: float) -> float:
        return robust_accuracy(model, relabelled, preprocessing, box=Box(epsilon, epsilon, 3))

    assert within(1e-9) == pytest.approx(plain)
    found = [within(epsilon) for epsilon in (0.01, 0.05, 0.4)]
    assert plain > found[0] > found[2]
    assert found == sorted(found, reverse=True)


def test_teachers_see_the_plain_images_of_an_attacked_batch(tiny_dataset: Dataset, tmp_path: Path) -> None:
    seen = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x.flatten(1))

    stage = stage_of(tiny_dataset, [soft("teacher")], {"teacher": Spy(784, 10)})
    one = dataclasses.replace(QUICK, epochs=1 / 6, shift_px=0)
    run_stage(dataclasses.replace(stage, players={"a": Attacker(Box(steps=1))}, training=one), out=tmp_path)
    plain = tiny_dataset.preprocessing.normalise(tiny_dataset.train.images(range(600))).flatten(1)
    rows = {tuple(row.tolist()) for row in plain}
    assert all(tuple(row.tolist()) in rows for row in seen[-1].flatten(1))


# ---------------------------------------------------------------------- the loop


def test_gradients_of_two_halves_are_those_of_the_whole_batch(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Of a net without batch norm, which sees the halves by nature."""
    weights = []
    for parts in (1, 4):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
        training = dataclasses.replace(QUICK, accumulate=parts)
        result = run_stage(
            Stage("s", tiny_dataset, {"student": net}, [Term(CrossEntropy())], {}, training), out=tmp_path / str(parts)
        )
        weights.append((net[3].weight.detach(), result.history[-1].losses["cross_entropy"]))
    torch.testing.assert_close(weights[0][0], weights[1][0], rtol=1e-4, atol=1e-6)
    assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-4)


def test_a_batch_that_parts_do_not_divide_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    training = dataclasses.replace(QUICK, accumulate=3)
    stage = dataclasses.replace(stage_of(tiny_dataset, [Term(CrossEntropy())], {}), training=training)
    with pytest.raises(InputError, match="batch_size 100 over 1 processes in 3 parts; give a multiple of 3"):
        run_stage(stage, out=tmp_path)


def test_the_students_end_with_their_moving_average_and_files_hold_it(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = averaged_and_mixed(tiny_dataset)
    run_stage(stage, out=tmp_path)
    student, saved = stage.students["student"], load(last_path(tmp_path))
    kept = student_weights(last_path(tmp_path))
    assert torch.equal(student.fc.weight, kept["fc.weight"])
    assert not torch.equal(kept["fc.weight"], saved["students"]["student"]["fc.weight"])


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a compiler"
)
def test_compiled_models_learn_the_same(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Without dropout, whose draws a compiled graph makes in another order."""
    weights = []
    for compiles in (False, True):
        student, teacher = Net(4, 1), Net(8, 9)
        student.dropout = nn.Identity()  # type: ignore[assignment]
        training = dataclasses.replace(QUICK, compile=compiles, epochs=0.5)
        stage = stage_of(tiny_dataset, [Term(CrossEntropy()), soft("teacher")], {"teacher": teacher}, student=student)
        run_stage(dataclasses.replace(stage, training=training), out=tmp_path / str(compiles))
        weights.append(student.fc.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


def test_teacher_and_student_see_the_same_mixed_images(tiny_dataset: Dataset, tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}

    class Spy(nn.Linear):
        def __init__(self, name: str) -> None:
            super().__init__(784, 10)
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 100 and (self.training or self.name == "teacher"):
                seen[self.name] = x
            return super().forward(x.flatten(1))

    training = dataclasses.replace(QUICK, epochs=1 / 6, mixup=1.0)
    stage = stage_of(tiny_dataset, [soft("teacher")], {"teacher": Spy("teacher")}, student=Spy("student"))
    run_stage(dataclasses.replace(stage, training=training), out=tmp_path)
    assert torch.equal(seen["teacher"], seen["student"])
