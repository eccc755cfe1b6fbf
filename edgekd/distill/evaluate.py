"""How good a model is on a split: accuracy with its interval, per class, likelihood and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data.dataset import Split
from edgekd.data.preprocessing import Preprocessing
from edgekd.distill.sources import device_of, evaluating, logits_of, use_channels_last
from edgekd.errors import CheckError, InputError
from edgekd.statistics import wilson_interval


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on a split.

    top1: share of correct answers; interval95: its Wilson interval. per_class: recall by class, None where the split
    has no such image. nll: mean negative log-likelihood in nats; ece: expected calibration error over 15 bins.
    logits: float32 (n, classes) where asked for.
    """

    n: int
    correct: int
    top1: float
    interval95: tuple[float, float]
    per_class: tuple[float | None, ...]
    nll: float
    ece: float
    logits: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the logits."""
        return {key: value for key, value in vars(self).items() if key != "logits"}


def evaluate(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 512,
    bfloat16: bool = False,
    keep_logits: bool = False,
) -> Evaluation:
    """The model in eval mode, on the device it is on, over the whole split; its modes and layout are as before after.

    bfloat16: run under autocast. Measures in float32 unless asked otherwise.
    Raises: InputError: the split is empty. CheckError: a logit is nan or inf.
    """
    if len(split) == 0:
        raise InputError("cannot evaluate on an empty split")
    with evaluating(model):
        first = preprocessing.normalise(split.images([0]).to(device_of(model)))
        layout = use_channels_last(model, first)
        try:
            logits = predict(model, split, preprocessing, batch_size=batch_size, bfloat16=bfloat16, layout=layout)
        finally:
            model.to(memory_format=torch.contiguous_format)
    return evaluation_of(logits, split.labels, keep_logits=keep_logits)


def predict(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 512,
    bfloat16: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Logits of a model in the mode it is in, over a split: float32 (N, classes) on the CPU."""
    device = device_of(model)
    parts = []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for index in torch.split(torch.arange(len(split)), batch_size):
            images = preprocessing.normalise(split.images(index).to(device)).contiguous(memory_format=layout)
            parts.append(logits_of(model(images)).float().cpu())
    return torch.cat(parts)


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of logits (N, classes) that are greatest at the label. Raises: CheckError: one is nan or inf.

    >>> accuracy_of(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    return int(_right(logits, labels).sum()) / len(labels)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    if bad := int((~torch.isfinite(logits).all(1)).sum()):
        what = f"the model gives nan or inf for {bad} of {len(logits)} images"
        raise CheckError(what, fix="check its weights and its input")
    return logits.argmax(1) == labels


def evaluation_of(logits: Tensor, labels: Tensor, *, keep_logits: bool = False) -> Evaluation:
    """An evaluation from logits (N, classes), whatever runtime they came from, and labels (N,).

    Raises: CheckError: a logit is nan or inf.
    """
    # Here, since it takes 4 s to import.
    from torchmetrics.functional.classification import multiclass_calibration_error

    n, classes = logits.shape
    right = _right(logits, labels)
    of_class = torch.bincount(labels, minlength=classes).tolist()
    right_of_class = torch.bincount(labels[right], minlength=classes).tolist()
    correct = int(right.sum())
    ece = multiclass_calibration_error(logits.softmax(1), labels, num_classes=classes, n_bins=15)
    return Evaluation(
        n=n,
        correct=correct,
        top1=correct / n,
        interval95=wilson_interval(correct, n),
        per_class=tuple(r / m if m else None for r, m in zip(right_of_class, of_class, strict=True)),
        nll=float(functional.cross_entropy(logits, labels)),
        ece=float(ece),
        logits=logits if keep_logits else None,
    )
