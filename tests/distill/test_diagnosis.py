"""Each failure mode shows on a run that was built to have it, and none on a healthy one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.data.preprocessing import Preprocessing
from edgekd.distill import (
    CrossEntropy,
    Hint,
    Loss,
    Needs,
    Player,
    Progress,
    Signals,
    SoftTarget,
    Stage,
    StageResult,
    Term,
    Training,
    best_path,
    last_path,
    run_stage,
)
from edgekd.distill.batches import Batch
from edgekd.distill.diagnosis import Check, capacity_collapse, chain_degradation
from edgekd.distill.losses import make_loss

CLASSES = 6


class Net(nn.Module):
    """Two convolutions, and beside them a branch whose units never fire."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.deep = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU())
        self.fc = nn.Linear(width, CLASSES)
        with torch.no_grad():
            self.branch[0].bias.fill_(-100.0)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        features = self.deep(self.shallow(x))
        return self.fc(features.mean((2, 3)) + self.branch(features).mean((1, 2, 3)).unsqueeze(1))


def split(n: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    patterns = torch.randn(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    large = functional.interpolate(patterns, (12, 12), mode="nearest")
    noise = torch.randn(n, 1, 12, 12, generator=generator)
    return TensorSplit((128 + 45 * large[labels] + 38 * noise).clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    names = tuple("abcdef")
    return Dataset(
        "made", names, split(360, 1), split(300, 2), split(60, 3), Preprocessing(12, 1, (0.5,), (0.25,)), "made"
    )


TRAINING = Training(epochs=16, batch_size=60, learning_rate=0.1, device="cpu", mixed_precision="no", clip_norm=5.0)


def net(width: int, seed: int) -> Net:
    torch.manual_seed(seed)
    return Net(width)


@pytest.fixture(scope="module")
def teacher(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Net:
    model = net(24, 0)
    training = dataclasses.replace(TRAINING, epochs=24)
    result = run_stage(
        Stage("teacher", data, {"student": model}, [Term(CrossEntropy())], {}, training),
        out=tmp_path_factory.mktemp("teacher"),
    )
    assert result.val_accuracy > 0.85
    return model


def run(
    data: Dataset, terms: list[Term], out: Path, *, teacher: nn.Module, student: nn.Module | None = None, **changes: Any
) -> tuple[StageResult, list[Check]]:
    """The stage's result, and what was said while it ran."""
    players: Mapping[str, Player] = changes.pop("players", {})
    training = dataclasses.replace(TRAINING, **changes)
    model = student or net(8, 1)
    stage = Stage("distil", data, {"student": model}, terms, {"teacher": teacher}, training, players=players)
    said: list[Check] = []

    def tell(progress: Progress) -> None:
        said.extend(progress.warnings)

    return run_stage(stage, out=out, on_progress=tell), said


def warned(result: StageResult) -> set[str]:
    return {check.name for check in result.checks if check.state == "warning"}


def healthy_terms() -> list[Term]:
    return [
        Term(CrossEntropy(), 0.3),
        Term(SoftTarget(temperature=4.0), 0.7, source="teacher"),
        Term(Hint("deep", "deep"), 1.0, source="teacher"),
    ]


def test_a_healthy_run_is_silent(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    result, said = run(data, healthy_terms(), tmp_path, teacher=teacher)
    assert {check.name: check.figure for check in result.checks if check.state != "ok"} == {}
    assert said == []
    assert result.val_accuracy > 0.8
    assert result.figures is not None
    assert result.figures.teachers["teacher"].accuracy > 0.85
    assert {check.name for check in result.checks} == {
        "dead taps",
        "collapsed features",
        "knowledge-type confusion",
        "misalignment (chance level)",
        "overconfidence",
        "diverging loss",
    }


def test_a_dead_tap_is_named_before_training_is_spent(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    terms = [Term(CrossEntropy()), Term(Hint("branch", "deep"), source="teacher")]
    result, said = run(data, terms, tmp_path, teacher=teacher, epochs=10)
    assert warned(result) == {"dead taps"}
    assert said[0].name == "dead taps"
    assert "student's 'branch'" in said[0].figure
    assert said[0].cause
    assert said[0].fix


class Contract(Loss):
    """Every image's feature towards the batch's mean: a trivial optimum."""

    name = "contract"

    def needs(self) -> Needs:
        return Needs(("deep",))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        feature = student.taps["deep"].flatten(1)
        direction = functional.normalize(feature.detach().mean(0, keepdim=True))
        along = (feature @ direction.T) * direction
        return (feature - along).square().mean() - 0.1 * along.square().mean().clamp_max(5.0)


def test_features_that_collapse_are_noticed(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    terms = [Term(Contract()), Term(Hint("deep", "deep"), 1e-4, source="teacher")]
    result, _ = run(data, terms, tmp_path, teacher=teacher, epochs=30)
    assert "collapsed features" in warned(result)


def test_a_low_loss_of_the_wrong_knowledge_is_noticed(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    result, _ = run(data, [Term(Hint("shallow", "shallow"), source="teacher")], tmp_path, teacher=teacher, epochs=30)
    assert "knowledge-type confusion" in warned(result)
    assert "misalignment (chance level)" not in warned(result)


class Unpaired(Player):
    """The teacher looks at other images than the student."""

    def before(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, teacher_images=batch.images[torch.randperm(len(batch.images))])


def test_a_teacher_of_unpaired_inputs_leaves_the_student_at_chance(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    terms = [Term(SoftTarget(temperature=2.0), source="teacher")]
    result, _ = run(data, terms, tmp_path, teacher=teacher, epochs=4, players={"world": Unpaired()})
    assert "misalignment (chance level)" in warned(result)


class Shuffled(nn.Module):
    """A good teacher whose classes are in another order."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).roll(1, dims=1)


def test_a_teacher_with_its_classes_in_another_order_is_found_out(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    terms = [Term(SoftTarget(), source="teacher")]
    result, _ = run(data, terms, tmp_path, teacher=Shuffled(teacher), epochs=2)
    (check,) = [check for check in result.checks if check.name.startswith("misalignment")]
    assert check.state == "warning"
    assert "class order" in check.fix


class Humble(nn.Module):
    """The teacher, less sure of the same answers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 0.2 * self.inner(x)


def test_a_student_surer_than_the_teacher_it_does_not_reach(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    few = dataclasses.replace(data, train=split(18, 1))
    terms = [Term(CrossEntropy()), Term(SoftTarget(), 1e-3, source="teacher")]
    result, _ = run(few, terms, tmp_path, teacher=Humble(teacher), epochs=200, batch_size=18)
    assert "overconfidence" in warned(result)


def test_a_loss_that_climbs_is_noticed_while_training(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    terms = [Term(CrossEntropy()), Term(SoftTarget(), source="teacher")]
    changes = {"learning_rate": 6.0, "warmup": 0.98, "clip_norm": 5.0, "epochs": 40}
    result, said = run(data, terms, tmp_path, teacher=teacher, **changes)
    assert "diverging loss" in warned(result)
    assert "diverging loss" in {check.name for check in said}


def test_collapse_under_the_baseline(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    """Weighty soft targets of a teacher whose classes are shuffled: worse than no teacher."""
    harmful = [Term(CrossEntropy(), 0.5), Term(SoftTarget(temperature=1.0), 0.5, source="teacher")]
    taught, _ = run(data, harmful, tmp_path / "a", teacher=Shuffled(teacher))
    alone, _ = run(data, [Term(CrossEntropy())], tmp_path / "b", teacher=teacher)
    helped, _ = run(data, healthy_terms(), tmp_path / "c", teacher=teacher)
    assert capacity_collapse(taught.val_accuracy, alone.val_accuracy).state == "warning"
    assert capacity_collapse(helped.val_accuracy, alone.val_accuracy).state == "ok"
    assert capacity_collapse(helped.val_accuracy, None).state == "unchecked"


def test_a_weak_link_of_a_chain(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    links = []
    for name, epochs in (("short", 0.4), ("long", 16.0)):
        result, _ = run(data, healthy_terms(), tmp_path / name, teacher=teacher, student=net(12, 2), epochs=epochs)
        assert result.figures is not None
        links.append((name, result.figures.student.accuracy, result.figures.teachers["teacher"].accuracy))
    assert chain_degradation(links).state == "warning"
    assert "'short'" in chain_degradation(links).figure
    assert chain_degradation(links[1:]).state == "ok"
    assert chain_degradation([]).state == "ok"


def test_looking_changes_no_weight_and_a_resumed_run_knows_what_was_found(
    data: Dataset, teacher: Net, tmp_path: Path
) -> None:
    states = []
    for diagnose in (True, False):
        student = net(8, 1)
        stage = Stage("distil", data, {"student": student}, healthy_terms(), {"teacher": teacher}, TRAINING)
        stage = dataclasses.replace(stage, diagnose=diagnose)
        result = run_stage(stage, out=tmp_path / str(diagnose))
        states.append(student.state_dict())
        assert bool(result.checks) == diagnose
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    stage = Stage("distil", data, {"student": net(8, 1)}, healthy_terms(), {"teacher": teacher}, TRAINING)
    first = run_stage(stage, out=tmp_path / "True", resume=True)
    again = run_stage(stage, out=tmp_path / "True", resume=True)
    assert first.checks == again.checks != ()
    assert first.figures == again.figures
    assert last_path(tmp_path / "True").exists()
    assert best_path(tmp_path / "True").exists()


def test_a_memory_of_training_images_is_not_asked_about_others(data: Dataset, teacher: Net, tmp_path: Path) -> None:
    from edgekd.distill import TemporalEnsemble

    stage = Stage(
        "distil",
        data,
        {"student": net(8, 1)},
        [Term(CrossEntropy()), Term(make_loss("soft_target_kl"), source="past")],
        {"past": TemporalEnsemble(data)},
        dataclasses.replace(TRAINING, epochs=2),
    )
    result = run_stage(stage, out=tmp_path)
    assert result.figures is not None
    assert result.figures.teachers == {}
    assert {c.name for c in result.checks if c.state == "unchecked"} >= {"overconfidence", "knowledge-type confusion"}
