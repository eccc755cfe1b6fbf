"""Every loss trains in the loop; what it remembers is resumed, and is the same in one process and in two."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import (
    CrossEntropy,
    Interrupted,
    Milestone,
    Pool,
    Signals,
    Stage,
    Term,
    Training,
    WithTaps,
    last_path,
    run_stage,
)
from edgekd.distill.checkpoint import load
from edgekd.distill.losses import LOSSES, ReusedClassifier, make_loss
from edgekd.errors import InputError

QUICK = Training(epochs=0.5, batch_size=60, learning_rate=0.02, device="cpu", seed=3, clip_norm=1.0)
LAST = {"student_tap": "stages.1", "teacher_tap": "stages.1"}
BOTH = {"student_tap": ["stages.0", "stages.1"], "teacher_tap": ["stages.0", "stages.1"]}
LOGITS = (
    *("cross_entropy", "soft_target_kl", "dkd", "nkd", "dist", "ctkd", "mlkd", "wsld", "reverse_kl", "symmetric_kl"),
    *("jensen_shannon", "hard_label"),
)
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LOSSES, LAST),
    **dict.fromkeys(("fsp", "vitkd", "review_kd", "hint", "vid", "ofd"), BOTH),
    **{name: {} for name in LOGITS},
    "logit_standardisation": {"inner": {"method": "dkd"}},
    "srrl": {"student_tap": "fc@in", "teacher_tap": "fc@in"},
    "simkd": {"student_tap": "projector", "teacher_tap": "stages.1"},
    "byot": {"student_tap": ["stages.0", "stages.1"]},
    "attention_maps": {"student_tap": "attention", "teacher_tap": "attention"},
    "uncertainty_weighted": {"inner": {"method": "dkd"}},
    "one": {"student_tap": "stages.0"},
    "gradient_balanced": {"terms": [{"method": "dkd"}, {"method": "hint", **LAST}], "student_tap": "stages.0"},
    "feature_fusion": {"student_tap": "stages.1", "teacher_tap": ["a/stages.1", "b/stages.1"]},
    "mtkd_rl": {"members": ["a", "b"], "student_tap": "stages.1", "teacher_tap": ["a/stages.1", "b/stages.1"]},
}
# Losses that normalise over the images of a batch, or compare an image with others.
NEEDS_SEVERAL = ("one", "srrl", "wcord_global")
# Losses whose teacher is a pool of two.
OF_A_POOL = ("feature_fusion", "mtkd_rl")


class Net(nn.Module):
    """Two stages with batch norm, a made-up attention map, a classifier."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(1, widths[0], 4, stride=4), nn.BatchNorm2d(widths[0]))
        second = nn.Sequential(nn.ReLU(), nn.Conv2d(widths[0], widths[1], 3, stride=2), nn.BatchNorm2d(widths[1]))
        self.stages = nn.Sequential(first, second)
        self.attention = nn.Softmax(3)
        self.fc = nn.Linear(widths[1], 10)

    def forward(self, x: Tensor) -> Tensor:
        f = self.stages(x)
        tokens = f.flatten(2).transpose(1, 2)
        mixed = self.attention((tokens @ tokens.transpose(1, 2)).unsqueeze(1)).squeeze(1) @ tokens
        return self.fc((tokens + mixed).relu().mean(1))


def nets(name: str, dataset: Dataset) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    student, teacher = Net((4, 8) if name != "fsp" else (6, 12)), Net((6, 12))
    if name == "simkd":
        student = ReusedClassifier(student, teacher, "stages.1", torch.zeros(2, 1, 28, 28))
    return student, teacher


def stage_of(name: str, dataset: Dataset, **changes: Any) -> Stage:
    student, teacher = nets(name, dataset)
    term = Term(make_loss(name, **OPTIONS[name]), source="teacher", weight=1e-3, name="method")
    terms = [Term(CrossEntropy()), term]
    source = Pool({"a": teacher, "b": Net((6, 10)).eval()}) if name in OF_A_POOL else teacher
    return Stage(
        "distil", dataset, {"student": student}, terms, {"teacher": source}, changes.pop("training", QUICK), **changes
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_in_the_loop(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = stage_of(name, tiny_dataset)
    before = {k: v.clone() for k, v in stage.students["student"].state_dict().items()}
    identity = stage.identity()
    result = run_stage(stage, out=tmp_path)
    assert result.steps == 5
    assert stage.identity() == identity, "else the very stage could not be resumed"
    assert abs(result.history[-1].losses["method"]) > 0
    after = stage.students["student"].state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in before if k.endswith("weight"))
    own = dict(stage.terms[1].loss.named_parameters())
    if own and name != "factor_transfer":
        saved = load(last_path(tmp_path))
        assert {f"1.{k}" for k in own} <= set(saved["losses"])


def test_students_with_returned_taps_are_looked_into_as_well(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """A wrapper's own paths differ from the model's, so its classifier is found as the last Linear."""
    stage = stage_of("cat_kd", tiny_dataset)
    stage.students["student"] = WithTaps(stage.students["student"], ["stages.1"])  # type: ignore[index]
    assert run_stage(stage, out=tmp_path).steps == 5


@pytest.mark.parametrize("name", ["crd", "crd_memory", "ctkd", "wcord_global", "mgd", "vitkd"])
def test_what_a_loss_remembers_is_resumed_bit_for_bit(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    def run(folder: str, stop_at: int | None, *, resume: bool = False) -> Stage:
        stop = [] if stop_at is None else [Milestone(stop_at / 5, lambda: os.kill(os.getpid(), signal.SIGINT))]
        stage = stage_of(name, tiny_dataset, milestones=stop)
        if stop:
            with pytest.raises(Interrupted):
                run_stage(stage, out=tmp_path / folder)
        else:
            run_stage(stage, out=tmp_path / folder, resume=resume)
        return stage

    whole = run("whole", None)
    run("cut", 2)
    resumed = run("cut", None, resume=True)
    for a, b in (
        (whole.students["student"], resumed.students["student"]),
        (whole.terms[1].loss, resumed.terms[1].loss),
    ):
        states = a.state_dict(), b.state_dict()
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_teacher_in_another_runtime_cannot_be_looked_into(tiny_dataset: Dataset, tmp_path: Path) -> None:
    class BlackBox:
        """Answers with logits and taps, and shows no layers."""

        def __init__(self, model: nn.Module) -> None:
            self.inner = WithTaps(model, ["fc@in"]).eval()

        def bind(self, images: Tensor, taps: Any) -> Any:
            return self.signals(type("Batch", (), {"images": images}))

        def signals(self, batch: Any) -> Any:
            with torch.no_grad():
                return Signals(*self.inner(batch.images))

        def close(self) -> None:
            pass

    stage = stage_of("srrl", tiny_dataset)
    stage.sources["teacher"] = BlackBox(stage.sources["teacher"])  # type: ignore[index,arg-type]
    with pytest.raises(InputError, match="stage 'distil': term 'method': srrl: the teacher has no Linear classifier"):
        run_stage(stage, out=tmp_path)


def one_step(batch_size: int) -> Training:
    """No warm-up, so that the step moves the weights; the loop ends a stage whose loss is nan or infinite."""
    return dataclasses.replace(QUICK, epochs=batch_size / 600, batch_size=batch_size, warmup=0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_image_is_taught_or_refused_in_one_line(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = stage_of(name, tiny_dataset, training=one_step(1))
    if name in NEEDS_SEVERAL:
        with pytest.raises(InputError, match="give a larger batch_size"):
            run_stage(stage, out=tmp_path)
    else:
        losses = run_stage(stage, out=tmp_path).history[-1].losses.values()
        assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("simkd", *OF_A_POOL)])
def test_a_teacher_like_the_student_gives_finite_weights(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = stage_of(name, tiny_dataset, training=one_step(20))
    stage = dataclasses.replace(stage, sources={"teacher": copy.deepcopy(stage.students["student"])})
    run_stage(stage, out=tmp_path)
    assert all(value.isfinite().all() for value in stage.students["student"].state_dict().values())


@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_only_bfloat16_holds_give_finite_weights(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = stage_of(name, tiny_dataset, training=one_step(20))
    classifiers = [net.fc for net in (*stage.students.values(), *stage.sources.values()) if isinstance(net, Net)]
    with torch.no_grad():
        for layer in classifiers:
            layer.weight *= 1e12
    run_stage(dataclasses.replace(stage, terms=stage.terms[1:], diagnose=False), out=tmp_path)
    assert all(value.isfinite().all() for value in stage.students["student"].state_dict().values())


def test_a_negative_weight_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    stage = Stage("x", tiny_dataset, {"student": Net((2, 2))}, [Term(CrossEntropy(), weight=-0.1)], {}, QUICK)
    with pytest.raises(InputError, match=r"stage 'x': term 'cross_entropy': weight -0\.1 is negative; give 0 or more"):
        run_stage(stage, out=tmp_path)
