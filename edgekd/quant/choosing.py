"""Which observer a whole network is best served by, judged where it counts: at its outputs.

The range with the least error of each tensor for itself is usually best, and sometimes not: what EfficientNet-Lite0
loses most by is a clipped tail, DeiT's and MobileNetV3-Large's outliers are better cut than a squared error would.
Measured with corrected biases, dB at the logits for least error, whole range, percentile: EfficientNet-Lite0 23.5,
23.2, 20.3; mobilenet_v3_large 22.2, 16.9, 22.6; deit_tiny 20.2, 18.4, 22.3; convnext_atto 37.3, 36.5, 36.6.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgekd.quant.bias_correction import correct_biases
from edgekd.quant.calibration import Calibrated
from edgekd.quant.observers import observers_of, set_mode
from edgekd.targets.spec import Observer

CANDIDATES: tuple[Observer, ...] = ("mse", "minmax", "percentile")
# Calibration images that biases are fitted on and, others, that the outputs are judged on; a batch of them at a time.
# Judged on 32 images, percentile wins wrongly: the rare image whose tail it cuts is not among them.
FITTED, JUDGED, BATCH = 32, 96, 16
# What an alternative to the least error of each tensor must be better by.
MARGIN_DB = 1.0


@torch.no_grad()
def settle_best(observed: Calibrated, *, corrected: bool) -> Observer:
    """Settle every observer that may choose on the candidate that keeps the outputs best, and say which.

    corrected: whether biases will be corrected; they are then in the trials too.
    """
    fitted, judged = _trial_images(observed)
    wanted = [_leaves(observed.graph, batch) for batch in judged]
    scores: dict[Observer, float] = {}
    for name in CANDIDATES:
        trial = Calibrated(copy.deepcopy(observed.graph), fitted)
        settle(trial.graph, name)
        if corrected:
            correct_biases(trial)
        set_mode(trial.graph, "quantise")
        scores[name] = _mean_db(wanted, [_leaves(trial.graph, batch) for batch in judged])
    scores[CANDIDATES[0]] += MARGIN_DB
    best = max(CANDIDATES, key=lambda name: scores[name])
    settle(observed.graph, best)
    return best


def settle(graph: fx.GraphModule, observer: Observer) -> None:
    """Choose every grid; `observer` is for those whose own is "auto"."""
    for module in observers_of(graph):
        module.settle(observer)


def _trial_images(observed: Calibrated) -> tuple[list[Tensor], list[Tensor]]:
    """Every n-th image, one of four to fit on and the others to judge on; all of them for both where there are few."""
    one_by_one = all(len(batch) == 1 for batch in observed.batches)
    images = torch.cat(observed.batches)
    step = max(1, len(images) // (FITTED + JUDGED))
    images = images[::step][: FITTED + JUDGED].to(next(observed.graph.parameters()).device)
    fits = torch.arange(len(images)) % 4 == 0
    parts = (images[fits], images[~fits]) if len(images) > 8 else (images, images)
    fitted, judged = (list(torch.split(part, 1 if one_by_one else BATCH)) for part in parts)
    return fitted, judged


def _leaves(graph: fx.GraphModule, batch: Tensor) -> list[Tensor]:
    """Every output; of a classifier's logits what softmax sees of them."""
    outputs = [leaf.double() for leaf in pytree.tree_leaves(graph(batch)) if isinstance(leaf, Tensor)]
    return [output - output.mean(1, keepdim=True) if output.ndim == 2 else output for output in outputs]


def _mean_db(wanted: list[list[Tensor]], got: list[list[Tensor]]) -> float:
    """Mean over the outputs of their signal to noise ratio, dB."""
    ratios = []
    for expected, found in zip(zip(*wanted, strict=True), zip(*got, strict=True), strict=True):
        signal, noise = torch.cat(expected), torch.cat(expected) - torch.cat(found)
        ratios.append(10 * torch.log10(signal.square().sum() / noise.square().sum().clamp(min=1e-30)))
    return float(torch.stack(ratios).mean())
