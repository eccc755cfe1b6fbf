"""Quantisation: prepare -> train -> convert with the target's spec; the exchange format of float and int8 programs.

Names load on first use: whoever only reads a program (every converter and checker process) does not import torchao.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.quant.adopt import adopt_program, adopted_shape
    from edgekd.quant.conversion import convert, ptq
    from edgekd.quant.graph import export_float
    from edgekd.quant.layer_errors import LayerError, layer_names, propose_float_layers, sensitivity
    from edgekd.quant.program import (
        image_shape,
        is_quantised,
        load_program,
        num_classes,
        output_names,
        output_shapes,
        save_program,
    )
    from edgekd.quant.qat import QatModel, prepare_qat
    from edgekd.quant.reparameterise import reparameterised
    from edgekd.quant.weights import int8_coverage, int8_macs, unfold_weights

# torch warns there of its own enums at torchao's every import: nothing a user of edgekd can act on.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

_MODULE = {
    "LayerError": "layer_errors",
    "QatModel": "qat",
    "adopt_program": "adopt",
    "adopted_shape": "adopt",
    "convert": "conversion",
    "export_float": "graph",
    "image_shape": "program",
    "int8_coverage": "weights",
    "int8_macs": "weights",
    "is_quantised": "program",
    "layer_names": "layer_errors",
    "load_program": "program",
    "num_classes": "program",
    "output_names": "program",
    "output_shapes": "program",
    "prepare_qat": "qat",
    "propose_float_layers": "layer_errors",
    "ptq": "conversion",
    "reparameterised": "reparameterise",
    "save_program": "program",
    "sensitivity": "layer_errors",
    "unfold_weights": "weights",
}

__all__ = [
    "LayerError",
    "QatModel",
    "adopt_program",
    "adopted_shape",
    "convert",
    "export_float",
    "image_shape",
    "int8_coverage",
    "int8_macs",
    "is_quantised",
    "layer_names",
    "load_program",
    "num_classes",
    "output_names",
    "output_shapes",
    "prepare_qat",
    "propose_float_layers",
    "ptq",
    "reparameterised",
    "save_program",
    "sensitivity",
    "unfold_weights",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(importlib.import_module(f"edgekd.quant.{_MODULE[name]}"), name)
    raise AttributeError(f"module 'edgekd.quant' has no attribute '{name}'")
