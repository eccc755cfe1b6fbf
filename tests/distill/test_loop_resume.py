"""A stage that was stopped goes on as if it had not been, and from nothing but its own checkpoint."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_stage import QUICK, same_weights, taught_stage, taught_terms, tiny_net
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import (
    CrossEntropy,
    Interrupted,
    Milestone,
    Progress,
    SoftTarget,
    Term,
    last_path,
    run_stage,
)
from edgekd.distill.checkpoint import load
from edgekd.errors import InputError


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
