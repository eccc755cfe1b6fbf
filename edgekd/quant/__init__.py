"""Quantisation: prepare -> train -> convert with the target's spec; the exchange format of float and int8 programs.

Names load on first use: whoever only reads a program (every converter and checker process) does not import torchao.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.quant.conversion import convert, ptq
    from edgekd.quant.graph import export_float
    from edgekd.quant.program import image_shape, is_quantised, load_program, num_classes, save_program
    from edgekd.quant.qat import QatModel, prepare_qat
    from edgekd.quant.weights import int8_coverage, unfold_weights

# torch warns there of its own enums at torchao's every import: nothing a user of edgekd can act on.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

_MODULE = {
    "QatModel": "qat",
    "convert": "conversion",
    "export_float": "graph",
    "image_shape": "program",
    "int8_coverage": "weights",
    "is_quantised": "program",
    "load_program": "program",
    "num_classes": "program",
    "prepare_qat": "qat",
    "ptq": "conversion",
    "save_program": "program",
    "unfold_weights": "weights",
}

__all__ = [
    "QatModel",
    "convert",
    "export_float",
    "image_shape",
    "int8_coverage",
    "is_quantised",
    "load_program",
    "num_classes",
    "prepare_qat",
    "ptq",
    "save_program",
    "unfold_weights",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(importlib.import_module(f"edgekd.quant.{_MODULE[name]}"), name)
    raise AttributeError(f"module 'edgekd.quant' has no attribute '{name}'")
