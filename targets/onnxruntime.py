"""ONNX Runtime: `.onnx` with QDQ int8, anywhere that has an execution provider.

Measured: affine activations rewritten to u8 run 17 of 17 QLinearConv at 1.9x fp32; symmetric ones stay mostly float
(0.5x), so symmetric is not offered here.
"""

from __future__ import annotations

from edgekd.profile import RuntimeSupport
from edgekd.targets.spec import QuantSpec, Scheme, Target

_SCHEMES: tuple[Scheme, ...] = ("affine",)
QUANT: dict[Scheme, QuantSpec] = {scheme: QuantSpec(scheme=scheme) for scheme in _SCHEMES}

TARGET = Target(
    name="onnxruntime",
    title="ONNX Runtime",
    suffix=".onnx",
    extra="all",
    packages=("onnxruntime", "onnxscript"),
    runs_here_with=("onnxruntime",),
    precisions=("fp32", "fp16", "int8", "w8"),
    schemes=_SCHEMES,
    quant=tuple(QUANT.values()),
)

# Everything the exported graphs need exists at 18; a newer opset would only shut out older runtimes.
DEFAULT_OPSET = 18


def opset_for(runtime: RuntimeSupport | None) -> int:
    """The opset that is exported for a runtime: the default, or the profile's own where that is lower."""
    cap = runtime.onnx_opset_max if runtime else None
    return min(DEFAULT_OPSET, cap) if cap is not None else DEFAULT_OPSET
