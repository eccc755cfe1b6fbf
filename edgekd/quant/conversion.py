"""From a trained or calibrated graph to an int8 program: batch norms folded, weights stored as int8, batch 1."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgekd.errors import InputError
from edgekd.quant.fast_patterns import fast_patterns
from edgekd.quant.graph import LogitsOnly, finish, fold_batch_norms, keep_first_output, trace
from edgekd.quant.lone_norms import norms_to_convolutions, norms_to_int8_convolutions
from edgekd.quant.qat import QatModel
from edgekd.quant.quantizer import EdgeQuantizer
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
        return _to_int8(trained.graph, example)


def ptq(
    model: nn.Module, batches: Iterable[Tensor], spec: QuantSpec, *, quantise_output: bool = True
) -> ExportedProgram:
    """The int8 program of a float model, its ranges taken from calibration batches and nothing trained.

    batches: normalised images (batch, channels, height, width) from the TRAINING split. The model is not changed; the
    calibration runs on its device.
    Raises: InputError: no batches, or the model cannot be traced.
    """
    calibration = iter(batches)
    first = next(calibration, None)
    if first is None or not len(first):
        raise InputError("no calibration images", fix="give at least one batch from the training split")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    frozen = LogitsOnly(copy.deepcopy(model)).cpu().eval()
    with torch.no_grad():
        graph = trace(frozen, first[:1].detach().cpu().repeat(2, 1, 1, 1), dynamic_batch=True)
        fold_batch_norms(graph)
        norms_to_convolutions(graph)
        observed = prepare_pt2e(graph, EdgeQuantizer(spec, training=False, quantise_output=quantise_output)).to(device)
        observed(first.to(device))
        for batch in calibration:
            observed(batch.to(device))
        return _to_int8(observed.cpu(), torch.zeros(1, *first.shape[1:]))


def _to_int8(graph: fx.GraphModule, example: Tensor) -> ExportedProgram:
    with fast_patterns(graph):
        converted = cast(fx.GraphModule, convert_pt2e(graph))
    norms_to_int8_convolutions(converted)
    return finish(converted, example)
