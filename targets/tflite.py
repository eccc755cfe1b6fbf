"""LiteRT (TensorFlow Lite's successor): `.tflite` for Android, Raspberry Pi and other Arm boards.

Measured (one int8 graph, 64 px inverted residuals): affine activations run int8 throughout at 38 dB and 2.3x fp32;
symmetric ones also run int8, at 36 dB. XNNPACK works in NHWC, so the artifact takes NHWC input.
"""

from __future__ import annotations

from edgekd.targets.spec import QuantSpec, Scheme, Target

_SCHEMES: tuple[Scheme, ...] = ("affine", "symmetric")
QUANT: dict[Scheme, QuantSpec] = {scheme: QuantSpec(scheme=scheme) for scheme in _SCHEMES}

TARGET = Target(
    name="tflite",
    title="LiteRT",
    suffix=".tflite",
    extra="tflite",
    packages=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    runs_here_with=("ai_edge_litert",),
    precisions=("fp32", "fp16", "int8", "w8"),
    schemes=_SCHEMES,
    input_layout="NHWC",
    timeout_s=420.0,  # a conversion takes 12 to 47 s and 1 GB on two idle cores; CI machines are neither
    quant=tuple(QUANT.values()),
)
