"""TensorRT: a build kit (typed ONNX + scripts) for Jetson, and ahead-of-time engines for RTX GPUs.

Measured with TensorRT-RTX 1.7: a zero point other than 0 is refused, so activations are symmetric. A Jetson engine is
always built on the device (it loads only with the TensorRT and GPU that built it); the kit needs onnx only.
"""

from __future__ import annotations

import re

from edgekd.errors import InputError
from edgekd.profile import RuntimeSupport
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

Version = tuple[int, int]
DEFAULT_VERSION: Version = (10, 3)  # JetPack 6.1 and 6.2, where no profile says otherwise
# Compute capabilities that TensorRT-RTX 1.7 builds for without the GPU present (measured), and its names for them.
RTX_ARCHITECTURES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}
OPSET_DEFAULT = 17
LAYER_NORM, LAYER_NORM_OPSET = (8, 6), 17  # TensorRT and ONNX opset that know LayerNormalization as one operator


def version_of(runtime: RuntimeSupport | None) -> Version:
    """(major, minor) of the profile's TensorRT.

    Raises: InputError: the profile's version is not a number.

    >>> version_of(None)
    (10, 3)
    """
    if runtime is None:
        return DEFAULT_VERSION
    numbers = re.match(r"(\d+)(?:\.(\d+))?", runtime.version)
    if numbers is None:
        raise InputError(f"TensorRT version '{runtime.version}'", where="profile", fix="write it as 8.2.1")
    return int(numbers[1]), int(numbers[2] or 0)


def opset_for(runtime: RuntimeSupport | None, *, layer_norm: bool) -> int:
    """The opset that is exported for a runtime: the default or the profile's, where that is lower.

    layer_norm: the network has one; then below 17 for a TensorRT that does not know it as one operator.
    """
    cap = runtime.onnx_opset_max if runtime else None
    opset = min(OPSET_DEFAULT, cap) if cap is not None else OPSET_DEFAULT
    rtx = ((runtime.compute_capability if runtime else None) or "") in RTX_ARCHITECTURES
    if layer_norm and version_of(runtime) < LAYER_NORM and not rtx:
        return min(opset, LAYER_NORM_OPSET - 1)
    return opset
