"""Core ML: `.mlpackage` for iPhone, iPad and Mac.

Measured on Linux with an emulated MIL program: q/dq graphs convert, 47 dB; prediction needs a Mac. w8a8 is faster than
fp16 only on A17 Pro, M4 and later (coremltools documentation); before them it saves size and costs speed.
"""

from __future__ import annotations

from edgekd.targets.spec import QuantSpec, Scheme, Target

_SCHEMES: tuple[Scheme, ...] = ("affine", "symmetric")
# Core ML has one operator for each; what its engines make of a split one was never measured.
QUANT: dict[Scheme, QuantSpec] = {scheme: QuantSpec(scheme=scheme, split_gates=False) for scheme in _SCHEMES}

TARGET = Target(
    name="coreml",
    title="Core ML",
    suffix=".mlpackage",
    extra="coreml",
    packages=("coremltools",),
    precisions=("fp32", "fp16", "int8", "w8"),
    schemes=_SCHEMES,
    timeout_s=300.0,
    quant=tuple(QUANT.values()),
)
