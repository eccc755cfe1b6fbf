"""Trackers draw what the history says."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.data.dataset import Dataset
from edgekd.distill import CrossEntropy, Stage, Term, Training, run_stage
from edgekd.distill.results import StageResult
from edgekd.distill.track_mlflow import mlflow_tracker
from edgekd.distill.track_tensorboard import tensorboard_tracker
from edgekd.errors import InputError

TRAINING = Training(epochs=2, batch_size=100, learning_rate=0.1, device="cpu", mixed_precision="no")


def trained(dataset: Dataset, out: Path, tell: object) -> StageResult:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    stage = Stage("distil", dataset, {"student": student}, [Term(CrossEntropy())], {}, TRAINING)
    return run_stage(dataclasses.replace(stage), out=out, on_progress=tell)  # type: ignore[arg-type]


def test_tensorboard_gets_each_epochs_losses_and_accuracy(tiny_dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = trained(tiny_dataset, tmp_path / "run", tensorboard_tracker(tmp_path / "tb"))
    seen = EventAccumulator(str(tmp_path / "tb" / "distil"))
    seen.Reload()
    drawn = {event.step: event.value for event in seen.Scalars("loss/cross_entropy")}
    assert drawn == {r.step: pytest.approx(r.losses["cross_entropy"], rel=1e-5) for r in result.history}
    assert len(seen.Scalars("val_accuracy")) == 2


def test_mlflow_gets_each_epochs_losses_and_accuracy(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="extra mlflow is not installed")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    result = trained(tiny_dataset, tmp_path / "run", mlflow_tracker("mine"))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("Default")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "distil/val_accuracy")
    assert [(m.step, m.value) for m in history] == [(r.step, pytest.approx(r.val_accuracy)) for r in result.history]
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")


@pytest.mark.parametrize(("tracker", "extra"), [(tensorboard_tracker, "tensorboard"), (mlflow_tracker, "mlflow")])
def test_a_missing_tracker_names_its_extra(tracker: object, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"not installed; pip install 'edgekd\[{extra}\]'"):
        tracker(Path("x"))  # type: ignore[operator]
