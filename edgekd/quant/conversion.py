"""From a trained or calibrated graph to an int8 program: batch norms folded, weights stored as int8, batch 1."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from edgekd.quant.average_pools import pools_to_int8_convolutions
from edgekd.quant.bias_correction import correct_biases
from edgekd.quant.bias_grid import biases_on_grid
from edgekd.quant.calibration import calibrated
from edgekd.quant.choosing import settle_best
from edgekd.quant.fast_patterns import fast_patterns
from edgekd.quant.graph import Outputs, finish, fold_batch_norms, keep_first_output
from edgekd.quant.lone_norms import norms_to_int8_convolutions
from edgekd.quant.qat import QatModel, eps_into_variance, show_hidden
from edgekd.quant.rescaling import round_alike
from edgekd.quant.rounding import round_to_outputs, store_rounded
from edgekd.targets.spec import QuantSpec


def convert(qat: QatModel) -> ExportedProgram:
    """The int8 program of a QAT model: batch 1, logits only, int8 weights stored as int8. The QAT model is not changed.

    Compare runtimes with this program and not with the QAT model: the two round in another order (25 to 55 dB apart).
    """
    trained = copy.deepcopy(qat).cpu().eval()
    example = torch.zeros(1, *qat.image_shape)
    with torch.no_grad():
        trained(example)  # weight ranges were last taken before the optimiser's last step
        keep_first_output(trained.graph)
        eps_into_variance(trained.graph)
        return _to_int8(trained.graph, example)


def ptq(
    model: nn.Module,
    batches: Iterable[Tensor],
    spec: QuantSpec,
    *,
    quantise_output: bool = True,
    outputs: Outputs = "first",
) -> ExportedProgram:
    """The int8 program of a float model: grids from calibration batches, weights rounded and biases corrected by them.

    batches: normalised images (batch, channels, height, width) from the TRAINING split. The model is not changed; the
    calibration runs on its device. outputs: "all" keeps every output of the model under its name.
    Raises: InputError: no usable batches or model (see `edgekd.quant.admission`), an unknown float layer, or the model
        cannot be traced.
    """
    observed = calibrated(model, batches, spec, quantise_output=quantise_output, outputs=outputs)
    if spec.rounding == "output":
        round_to_outputs(observed)
    if spec.observer == "auto":
        settle_best(observed, corrected=spec.bias_correction)
    with torch.no_grad():
        if spec.bias_correction:
            correct_biases(observed)
        store_rounded(observed.graph)
        return _to_int8(observed.graph.cpu(), torch.zeros(1, *observed.image_shape))


def _to_int8(graph: fx.GraphModule, example: Tensor) -> ExportedProgram:
    with fast_patterns(graph):
        converted = cast(fx.GraphModule, convert_pt2e(graph))
    show_hidden(converted)
    fold_batch_norms(converted)
    norms_to_int8_convolutions(converted)
    pools_to_int8_convolutions(converted)
    round_alike(converted)
    biases_on_grid(converted)
    return finish(converted, example)
