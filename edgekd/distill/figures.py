"""What a checkup reads off a stage: how student and teachers answer held-out images, and how their features vary.

A few hundred held-out images, no gradient, eval mode: the cost of a small validation, none per step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgekd.distill.batches import Batch
from edgekd.distill.losses.divergence import entropy
from edgekd.distill.losses.features import as_vector
from edgekd.distill.sources import Signals, Source
from edgekd.errors import InputError

CHUNK = 128
_CONSTANT = 1e-8  # relative variance below which float32 noise is all there is


@dataclass(frozen=True)
class TapFigures:
    """variation: variance over the images relative to the mean square, 0: the same for every image.

    dimension: effective number of directions that pooled features vary in, (sum l)^2 / sum l^2 over the eigenvalues l
    of their covariance; None where pooling leaves nothing (attention maps).
    """

    tap: str
    variation: float
    dimension: float | None


@dataclass(frozen=True)
class ModelFigures:
    """Answers to the probe images. entropy: mean, nats, at temperature 1. commonest: share of the commonest answer."""

    accuracy: float
    entropy: float
    commonest: float
    taps: tuple[TapFigures, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Student and one teacher on the same images. entropy_gap: student's minus teacher's, nats, with its standard
    error; agreement: share of equal answers."""

    entropy_gap: float
    entropy_gap_se: float
    agreement: float


@dataclass(frozen=True)
class StageFigures:
    """A stage as its checks see it. n: probe images; chance: share of their commonest label. teachers: those that can
    be asked about held-out images. losses: of each term with a teacher, (first step, mean of the last epoch)."""

    step: int
    n: int
    classes: int
    chance: float
    student: ModelFigures
    teachers: dict[str, ModelFigures] = field(default_factory=dict)
    against: dict[str, Comparison] = field(default_factory=dict)
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> StageFigures:
        """The inverse of `dataclasses.asdict`."""
        return cls(
            **{
                **document,
                "student": _model(document["student"]),
                "teachers": {who: _model(model) for who, model in document["teachers"].items()},
                "against": {who: Comparison(**pair) for who, pair in document["against"].items()},
                "losses": {label: (first, last) for label, (first, last) in document["losses"].items()},
            }
        )


def _model(document: Mapping[str, Any]) -> ModelFigures:
    return ModelFigures(**{**document, "taps": tuple(TapFigures(**tap) for tap in document["taps"])})


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers: logits (n, classes) and what was found at its taps."""

    logits: Tensor
    taps: tuple[TapFigures, ...]

    def figures(self, labels: Tensor) -> ModelFigures:
        """The figures that need labels (n,)."""
        said = self.logits.argmax(1)
        return ModelFigures(
            accuracy=float((said == labels).float().mean()),
            entropy=float(self.entropies().mean()),
            commonest=int(said.bincount().max()) / len(said),
            taps=self.taps,
        )

    def entropies(self) -> Tensor:
        """Nats (n,)."""
        return entropy(self.logits.log_softmax(1))


def compare(student: Answers, teacher: Answers) -> Comparison:
    """Image by image. Raises: InputError: their classes differ."""
    if student.logits.shape != teacher.logits.shape:
        raise InputError(f"logits {tuple(student.logits.shape)} and {tuple(teacher.logits.shape)} do not compare")
    gap = student.entropies() - teacher.entropies()
    same = student.logits.argmax(1) == teacher.logits.argmax(1)
    return Comparison(
        entropy_gap=float(gap.mean()),
        entropy_gap_se=float(gap.std(correction=0)) / len(gap) ** 0.5,
        agreement=float(same.float().mean()),
    )


def ask(source: Source, images: Tensor, labels: Tensor) -> Answers:
    """A model's answers to normalised images, in chunks; the caller has put it in eval mode."""
    logits: list[Tensor] = []
    taps: dict[str, _Running] = {}
    with torch.no_grad():
        for index in torch.split(torch.arange(len(images), device=images.device), CHUNK):
            said: Signals = source.signals(Batch(images[index], labels[index], index, step=0, progress=0.0))
            logits.append(said.logits.float().cpu())
            for tap, feature in said.taps.items():
                taps.setdefault(tap, _Running()).add(feature.float())
    return Answers(torch.cat(logits), tuple(running.figures(tap) for tap, running in taps.items()))


class _Running:
    """Sums over images of a feature and its square, and its pooled vectors."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Any = 0.0
        self.squares: Any = 0.0
        self.vectors: list[Tensor] = []

    def add(self, feature: Tensor) -> None:
        self.count += len(feature)
        self.sums = self.sums + feature.double().sum(0).cpu()
        self.squares = self.squares + feature.double().square().sum(0).cpu()
        self.vectors.append(as_vector(feature).cpu() if feature.ndim in (2, 3, 4) else feature.flatten(1).cpu())

    def figures(self, tap: str) -> TapFigures:
        mean_square = float(self.squares.mean()) / self.count
        variance = float((self.squares / self.count - (self.sums / self.count).square()).clamp_min(0).mean())
        variation = variance / mean_square if mean_square > 0 else 0.0
        return TapFigures(tap, variation if variation > _CONSTANT else 0.0, dimension_of(torch.cat(self.vectors)))


def dimension_of(vectors: Tensor) -> float | None:
    """Participation ratio of the covariance of vectors (n, channels); None where they do not vary.

    >>> round(dimension_of(torch.eye(4).repeat(8, 1)), 3), dimension_of(torch.ones(5, 3)) is None
    (3.0, True)
    """
    centred = vectors.double() - vectors.double().mean(0)
    scale = float(vectors.double().square().mean())
    if scale == 0 or float(centred.square().mean()) <= _CONSTANT * scale:
        return None
    covariance = centred.T @ centred if centred.shape[1] <= centred.shape[0] else centred @ centred.T
    return float(covariance.trace().square() / covariance.square().sum())


def commonest_share(labels: Sequence[int] | Tensor) -> float:
    """What answering the commonest label always would get.

    >>> commonest_share([0, 0, 1, 2])
    0.5
    """
    counts = torch.as_tensor(labels).bincount()
    return int(counts.max()) / int(counts.sum())
