"""A network of three layers and the stage that teaches it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import (
    CrossEntropy,
    Hint,
    SoftTarget,
    Stage,
    Term,
    Training,
)

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
