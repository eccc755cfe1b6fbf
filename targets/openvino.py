"""OpenVINO: IR (`.xml` + `.bin`) for Intel CPUs, GPUs and NPUs, and Arm CPUs.

Measured: affine 17 of 17 convolutions u8 at 37 dB and 2.2x fp32; symmetric 1.96x. On x86 without VNNI int8 accumulation
saturates: such a profile asks for 7-bit weights.
"""

from __future__ import annotations

from edgekd.targets.spec import QuantSpec, Scheme, Target

_SCHEMES: tuple[Scheme, ...] = ("affine", "symmetric")
# Its plugin fuses a whole hardswish or silu into the convolution before it; split they are 10 to 17% slower (measured).
# It fuses residual additions too, and then leaves out the rounding of the convolution's output even where the file has
# one: what is trained and compared must not round there either (mobilenet_v2: 33 dB against 42, measured).
QUANT: dict[Scheme, QuantSpec] = {
    scheme: QuantSpec(scheme=scheme, split_gates=False, residual_in_convolution=True, activation_in_convolution=True)
    for scheme in _SCHEMES
}

TARGET = Target(
    name="openvino",
    title="OpenVINO",
    suffix=".xml",
    extra="openvino",
    packages=("openvino",),
    runs_here_with=("openvino",),
    precisions=("fp32", "fp16", "int8", "w8"),
    schemes=_SCHEMES,
    quant=tuple(QUANT.values()),
)
