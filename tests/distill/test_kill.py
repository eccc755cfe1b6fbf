"""kill -9 in mid-epoch, then resume: the weights at the end are those of a run that nobody killed, bit for bit.

The run is forked from the test, so that it is a process of its own and starts at once; it kills itself between two
checkpoints of which the last is older than the step it dies in. To add a method: a line in SETUPS.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data.dataset import Dataset
from edgekd.distill import CrossEntropy, Loss, Milestone, Pool, Signals, SoftTarget, Stage, Term, Training, run_stage
from edgekd.distill.batches import Batch
from edgekd.distill.checkpoint import last_path, load
from edgekd.distill.losses import make_loss
from edgekd.distill.losses.features import as_vector
from edgekd.distill.terms import Needs

TRAINING = Training(
    epochs=3,
    batch_size=50,
    learning_rate=0.1,
    device="cpu",
    seed=3,
    shift_px=1,
    mixed_precision="no",
    checkpoint_every_s=0,
)
DIES_IN = 20  # of 36 steps, 12 to an epoch


class Net(nn.Module):
    """Two convolutions with batch norm and dropout."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(1, width, 4, stride=4), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x).mean((2, 3))))


class LearnedMixture(Loss):
    """Squared distance to the teachers' features, projected and mixed with weights that are learned."""

    name = "learned_mixture"

    def needs(self) -> Needs:
        return Needs(("features",), ("a/features", "b/features"))

    def build(self, student: Signals, teacher: Signals) -> None:
        mine = as_vector(student.taps["features"]).shape[1]
        widths = [as_vector(teacher.taps[tap]).shape[1] for tap in self.needs().teacher]
        self.shares = nn.Parameter(torch.zeros(len(widths)))
        self.projectors = nn.ModuleList([nn.Linear(mine, width) for width in widths])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        mine = as_vector(student.taps["features"])
        apart = [
            functional.mse_loss(project(mine), as_vector(teacher.taps[tap]))
            for project, tap in zip(self.projectors, self.needs().teacher, strict=True)
        ]
        return self.shares.softmax(0) @ torch.stack(apart)


def kd(dataset: Dataset) -> Stage:
    terms = [Term(CrossEntropy(), 0.1), Term(SoftTarget(), 0.9, source="teacher")]
    return Stage("distil", dataset, {"student": Net(4, 1)}, terms, {"teacher": Net(8, 9)}, TRAINING)


def crd(dataset: Dataset) -> Stage:
    taps = {"student_tap": "fc@in", "teacher_tap": "fc@in"}
    losses = [make_loss("crd_memory", negatives=64, dimensions=8, **taps), make_loss("crd", dimensions=8, **taps)]
    terms = [Term(CrossEntropy()), *(Term(loss, 0.8, source="teacher") for loss in losses)]
    return dataclasses.replace(kd(dataset), terms=terms)


def crd_in_parts(dataset: Dataset) -> Stage:
    return dataclasses.replace(crd(dataset), training=dataclasses.replace(TRAINING, accumulate=2))


def moving_average(dataset: Dataset) -> Stage:
    return dataclasses.replace(kd(dataset), training=dataclasses.replace(TRAINING, ema_decay=0.9))


def learned_weights(dataset: Dataset) -> Stage:
    pool = Pool({"a": Net(12, 7), "b": Net(8, 8)}, weighting="labels")
    terms = [Term(CrossEntropy()), Term(SoftTarget(), source="pool"), Term(LearnedMixture(), source="pool")]
    return dataclasses.replace(kd(dataset), sources={"pool": pool}, terms=terms)


def mtkd_rl(dataset: Dataset) -> Stage:
    taps = {"student_tap": "features", "teacher_tap": ["a/features", "b/features"]}
    stage = learned_weights(dataset)
    loss = make_loss("mtkd_rl", members=["a", "b"], **taps)
    return dataclasses.replace(stage, terms=[Term(CrossEntropy()), Term(loss, source="pool")])


SETUPS: list[Callable[[Dataset], Stage]] = [kd, crd, crd_in_parts, moving_average, learned_weights, mtkd_rl]


def run_and_die(stage: Stage, out: Path) -> None:
    """Carry the stage out in a fork of this process, which ends with SIGKILL in step DIES_IN."""
    child = os.fork()
    if child == 0:
        try:
            death = Milestone(DIES_IN / 36, lambda: os.kill(os.getpid(), signal.SIGKILL))
            run_stage(dataclasses.replace(stage, milestones=[death]), out=out)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.__name__)
def test_a_run_killed_in_mid_epoch_ends_bit_for_bit_like_one_that_was_not(
    setup: Callable[[Dataset], Stage], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    whole = setup(tiny_dataset)
    expected = run_stage(whole, out=tmp_path / "whole")
    run_and_die(setup(tiny_dataset), tmp_path / "killed")
    assert load(last_path(tmp_path / "killed"))["step"] == DIES_IN
    resumed = setup(tiny_dataset)
    result = run_stage(resumed, out=tmp_path / "killed", resume=True)
    for one, other in (
        (whole.students["student"], resumed.students["student"]),
        (losses_of(whole), losses_of(resumed)),
    ):
        pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
        assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)
    assert [r.losses for r in result.history] == [r.losses for r in expected.history]


def losses_of(stage: Stage) -> nn.ModuleList:
    return nn.ModuleList([term.loss for term in stage.terms])
