"""TensorRT: a build kit (typed ONNX + scripts) for Jetson, and ahead-of-time engines for RTX GPUs.

Measured with TensorRT-RTX 1.7: a zero point other than 0 is refused, so activations are symmetric. A Jetson engine is
always built on the device (it loads only with the TensorRT and GPU that built it); the kit needs onnx only.
"""

from __future__ import annotations

from edgekd.targets.spec import QuantSpec, Scheme, Target

_SCHEMES: tuple[Scheme, ...] = ("symmetric",)
# A residual addition is fused into the convolution before it only where that output is not rounded in between (NVIDIA,
# TensorFlow quantization toolkit, "Custom Q/DQ insertion case"; the fusion itself was not timed here: no GPU).
QUANT: dict[Scheme, QuantSpec] = {scheme: QuantSpec(scheme=scheme, residual_in_convolution=True) for scheme in _SCHEMES}

TARGET = Target(
    name="tensorrt",
    title="TensorRT",
    suffix=".trtkit",
    extra="tensorrt",
    packages=("onnx", "onnxscript"),
    evidence_with=("tensorrt_rtx_bindings",),
    precisions=("fp32", "fp16", "int8"),
    schemes=_SCHEMES,
    quant=tuple(QUANT.values()),
)
