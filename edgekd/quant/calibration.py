"""A float model as a graph with an observer wherever int8 begins or ends, after it saw the calibration images."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgekd.errors import InputError
from edgekd.quant.admission import calibration_images, require_usable, single
from edgekd.quant.average_pools import pools_to_convolutions
from edgekd.quant.gates import split_gates
from edgekd.quant.graph import LogitsOnly, Outputs, fold_batch_norms, trace
from edgekd.quant.lone_norms import norms_to_convolutions
from edgekd.quant.observers import observers_of, set_mode
from edgekd.quant.quantizer import EdgeQuantizer
from edgekd.quant.reparameterise import reparameterised
from edgekd.quant.rewrites import fold_scales
from edgekd.targets.spec import QuantSpec


@dataclass
class Calibrated:
    """graph: observers in place, grids chosen, mode "pass". batches: what it saw, sized as the graph takes them."""

    graph: fx.GraphModule
    batches: list[Tensor]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return tuple(self.batches[0].shape[1:])


def calibrated(
    model: nn.Module,
    batches: Iterable[Tensor],
    spec: QuantSpec,
    *,
    quantise_output: bool = True,
    outputs: Outputs = "first",
) -> Calibrated:
    """Trace, fold, place observers, run the calibration on the model's device, choose the grids.

    Raises: InputError: what `require_usable`, `calibration_images` and `trace` refuse, or an unknown float layer.
    """
    require_usable(model)
    images = calibration_images(batches)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        graph, free_batch = float_graph(model, images[0], outputs)
        if not free_batch:
            images = list(single(images))
        if spec.split_gates:
            split_gates(graph)
        every = outputs == "all"
        quantizer = EdgeQuantizer(spec, training=False, quantise_output=quantise_output, every_output=every)
        observed = cast(fx.GraphModule, prepare_pt2e(graph, quantizer)).to(device)
        _observe(observed, images, device)
    return Calibrated(observed, images)


def float_graph(model: nn.Module, images: Tensor, outputs: Outputs = "first") -> tuple[fx.GraphModule, bool]:
    """The model in eval mode with everything folded that can be, and whether its batch is free.

    Some models write their batch into the graph (a program exported for one image): those run image by image.
    """
    frozen = LogitsOnly(copy.deepcopy(reparameterised(model)), outputs).cpu().eval()
    example = images[:1].detach().cpu()
    try:
        graph, free_batch = trace(frozen, example.repeat(2, 1, 1, 1), dynamic_batch=True), True
    except InputError:
        graph, free_batch = trace(frozen, example), False
    fold_batch_norms(graph)
    norms_to_convolutions(graph)
    pools_to_convolutions(graph)
    fold_scales(graph)
    return graph, free_batch


def _observe(graph: fx.GraphModule, images: list[Tensor], device: torch.device) -> None:
    set_mode(graph, "observe")
    for batch in images:
        graph(batch.to(device))
    for observer in observers_of(graph):
        observer.settle()  # what may choose gets the least error of each tensor; `settle_best` looks further
    set_mode(graph, "pass")
