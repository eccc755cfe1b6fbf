"""Evaluations are counted right, and leave the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.distill import evaluate, evaluation_of
from edgekd.errors import CheckError, InputError


class Flattening(nn.Module):
    """Calls `view` on a feature map, as many older models do; channels_last cannot be viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=3)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2 * 9 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.fc(x.view(len(x), -1))


def test_accuracy_is_counted_in_all_and_by_class() -> None:
    logits = torch.eye(3)[[0, 0, 1, 1]] * 9
    found = evaluation_of(logits, torch.tensor([0, 1, 1, 1]))
    assert (found.n, found.correct, found.top1) == (4, 3, 0.75)
    assert found.per_class == (1.0, pytest.approx(2 / 3), None)


def test_a_model_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    logits = torch.tensor([[0.7, 0.3]]).log().expand(10, 2)
    found = evaluation_of(logits, torch.tensor([0] * 7 + [1] * 3))
    assert found.ece == pytest.approx(0, abs=1e-6)
    assert found.nll == pytest.approx(0.6109, abs=1e-4)


def test_a_model_that_gives_nan_fails_the_check() -> None:
    with pytest.raises(CheckError, match="nan or inf for 1 of 2 images"):
        evaluation_of(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]))


def test_modes_layout_and_statistics_are_as_before(tiny_dataset: Dataset) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    model.train()
    model[1].eval()
    found = evaluate(model, tiny_dataset.val, tiny_dataset.preprocessing, keep_logits=True)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[0].weight.is_contiguous()
    assert model[1].running_mean.abs().sum() == 0
    assert found.logits is not None
    images = tiny_dataset.preprocessing.normalise(tiny_dataset.val.images(range(100)))
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_model_that_views_its_feature_map_is_evaluated_too(tiny_dataset: Dataset) -> None:
    assert evaluate(Flattening(), tiny_dataset.val, tiny_dataset.preprocessing).n == 100


def test_an_empty_split_is_refused(tiny_dataset: Dataset) -> None:
    empty = TensorSplit(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="empty split"):
        evaluate(Flattening(), empty, tiny_dataset.preprocessing)
