"""Which observer a whole network is best served by, judged where it counts: at its outputs.

The range with the least error of each tensor for itself is usually best, and sometimes not: DeiT's outliers are better
cut than a squared error would. Measured with corrected biases on 96 calibration images, dB of the mean image at the
logits for least error, whole range, percentile (nets trained briefly on CIFAR-10): mobilenet_v3_large 26.8, 23.4, 25.8;
deit_tiny 21.1, 19.8, 25.8; convnext_atto 37.0, 37.0, 36.9; efficientnet_b0 22.4, 6.6, 21.6; repvit_m0_9 24.9, 21.3,
25.2.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgekd.quant.bias_correction import correct_biases
from edgekd.quant.calibration import Calibrated
from edgekd.quant.fidelity import image_db
from edgekd.quant.observers import ActivationObserver, Range, observers_of, set_mode
from edgekd.targets.spec import Observer

CANDIDATES: tuple[Observer, ...] = ("mse", "minmax", "percentile")
# Calibration images that biases are fitted on and, others, that the outputs are judged on; a batch of them at a time.
# Judged on 32 images, percentile wins wrongly: the rare image whose tail it cuts is not among them.
FITTED, JUDGED, BATCH = 32, 96, 16
# What an alternative to the least error of each tensor must be better by.
MARGIN_DB = 1.0
# Shares of the images whose extremes an output's grid may cover instead of all of them.
OUTPUT_SHARES = (0.99, 0.95, 0.9)


@torch.no_grad()
def settle_best(observed: Calibrated, *, corrected: bool) -> Observer:
    """Settle every observer that may choose on the candidate that keeps the outputs best, and say which.

    corrected: whether biases will be corrected; they are then in the trials too.
    """
    fitted, judged = _trial_images(observed)
    wanted = [_leaves(observed.graph, batch) for batch in judged]
    scores: dict[Observer, float] = {}
    ranges: dict[Observer, dict[str, Range]] = {}
    for name in CANDIDATES:
        trial = Calibrated(copy.deepcopy(observed.graph), fitted)
        settle(trial.graph, name)
        if corrected:
            correct_biases(trial)
        set_mode(trial.graph, "quantise")
        scores[name], ranges[name] = _judge(trial.graph, judged, wanted)
    scores[CANDIDATES[0]] += MARGIN_DB
    best = max(CANDIDATES, key=lambda name: scores[name])
    settle(observed.graph, best)
    for target, ends in ranges[best].items():
        _activation_observer(observed.graph, target).cover(*ends)
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
    return [leaf for leaf in pytree.tree_leaves(graph(batch)) if isinstance(leaf, Tensor)]


def _judge(graph: fx.GraphModule, judged: list[Tensor], wanted: list[list[Tensor]]) -> tuple[float, dict[str, Range]]:
    """Score of a rounding graph, dB, and what its output observers, by name, should cover for it.

    An output's grid covers its whole range: the largest values are the ones read. It covers what some of the images
    have where that keeps the mean image better by the margin: else one extreme image can cost the others their digits.
    """
    names = _output_observers(graph)
    for name in names:
        if name is not None:
            _activation_observer(graph, name).mode = "pass"
    got = [torch.cat(leaf) for leaf in zip(*(_leaves(graph, batch) for batch in judged), strict=True)]
    expected = [torch.cat(leaf) for leaf in zip(*wanted, strict=True)]
    scores, ranges = [], dict[str, Range]()
    for name, found, aim in zip(names, got, expected, strict=True):
        if name is None:
            scores.append(_mean_image_db(aim, found))
            continue
        observer = _activation_observer(graph, name)
        best = _mean_image_db(aim, observer.rounded(found))
        for share in OUTPUT_SHARES if observer.fixed is None else ():
            ends = _range_of(aim, share)
            observer.cover(*ends)
            score = _mean_image_db(aim, observer.rounded(found))
            if score > best + MARGIN_DB:
                best, ranges[name] = score, ends
        scores.append(best)
    return sum(scores) / len(scores), ranges


def _output_observers(graph: fx.GraphModule) -> list[str | None]:
    """Per tensor that the graph returns the name of its observer, None where it stays float."""
    names: list[str | None] = []
    for leaf in pytree.tree_leaves(graph.graph.output_node().args[0]):
        if isinstance(leaf, fx.Node):
            known = leaf.op == "call_module" and isinstance(graph.get_submodule(str(leaf.target)), ActivationObserver)
            names.append(str(leaf.target) if known else None)
    return names


def _activation_observer(graph: fx.GraphModule, name: str) -> ActivationObserver:
    return cast(ActivationObserver, graph.get_submodule(name))


def _range_of(outputs: Tensor, share: float) -> Range:
    """(low, high) that whole images keep within on either side: `share` of them."""
    images = outputs.double().reshape(len(outputs), -1)
    return float(images.amin(1).quantile(1 - share)), float(images.amax(1).quantile(share))


def _mean_image_db(wanted: Tensor, got: Tensor) -> float:
    """Signal to noise ratio of the mean image, dB; of a classifier's logits what softmax sees of them.

    Over images and not over all values: images with extreme activations would be all that is judged.
    """
    if wanted.ndim == 2:
        wanted, got = (outputs - outputs.mean(1, keepdim=True) for outputs in (wanted, got))
    return float(image_db(wanted, got).mean())
