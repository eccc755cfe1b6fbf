"""Quantisation: prepare -> train -> convert with the target's spec; the exchange format of float and int8 programs."""

from __future__ import annotations

from edgekd.quant import quiet_torchao  # noqa: F401  before anything here imports torchao
from edgekd.quant.conversion import convert, ptq
from edgekd.quant.graph import export_float
from edgekd.quant.program import image_shape, is_quantised, load_program, num_classes, save_program
from edgekd.quant.qat import QatModel, prepare_qat
from edgekd.quant.weights import int8_coverage, unfold_weights

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
