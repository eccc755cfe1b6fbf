"""The vocabulary of a target: what a runtime accepts, as frozen data. No vendor import, no torch."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import Field

from edgekd.artifact import Frozen, Layout, Precision

Scheme = Literal["affine", "symmetric"]
Observer = Literal["auto", "minmax", "percentile", "mse"]
# Kinds of operators that a runtime may rather compute in float; convolutions and linear layers have float_layers.
OpKind = Literal["softmax", "layer_norm", "gelu", "silu", "sigmoid", "hardswish", "tanh", "matmul", "resize", "pool"]


class QuantSpec(Frozen):
    """How int8 must look for one runtime. Weights are per-channel symmetric along axis 0 (all five runtimes agree).

    activation_*: per tensor; `affine` has a zero point, `symmetric` has zero point 0 (TensorRT refuses any other).
    weight_bits: 7 on x86 without VNNI, where u8 x i8 accumulation saturates in 16 bits.
    observer: which range of what calibration saw becomes the grid: all of it, all but the tails, or the one with the
    least expected error of each tensor ("mse"); the last two count an image with extreme activations as a part of one.
    "auto" takes whichever of the three keeps the network's outputs best, and of the outputs themselves the whole range
    unless a few extreme images decide it. percentile: share (%) that "percentile" keeps on either side.
    rounding: weights to the "nearest" codes, or to those that keep the layer's "output" closest (PTQ; Frantar 2022).
    bias_correction: PTQ moves each bias by the mean error of its channel (Nagel et al. 2019, section 4.2).
    float_layers: paths as `named_modules()` gives them; a path stands for everything under it. float_kinds: operators
    that stay float wherever they are. split_gates: hardswish and silu as a product with a gate on a fixed grid, which
    has fast int8 kernels where the whole operator has none. residual_in_convolution: the convolution before a residual
    addition computes the sum as well, so that its own output is never rounded. activation_in_convolution: the same for
    the hardswish, silu, gelu, sigmoid or the like that alone reads a convolution or linear layer.
    """

    scheme: Scheme
    activation_min: int = -128
    activation_max: int = 127
    weight_bits: Literal[7, 8] = 8
    observer_averaging_constant: float = 0.05
    eps: float = 2**-16
    observer: Observer = "auto"
    percentile: float = Field(default=99.99, gt=50, le=100)
    rounding: Literal["nearest", "output"] = "output"
    bias_correction: bool = True
    float_layers: tuple[str, ...] = ()
    float_kinds: tuple[OpKind, ...] = ("softmax", "layer_norm")
    split_gates: bool = True
    residual_in_convolution: bool = False
    activation_in_convolution: bool = False

    @property
    def weight_max(self) -> int:
        """Largest weight code; the smallest is its negative.

        >>> QuantSpec(scheme="affine").weight_max, QuantSpec(scheme="affine", weight_bits=7).weight_max
        (127, 63)
        """
        return int(2 ** (self.weight_bits - 1)) - 1


class Target(Frozen):
    """One runtime. `schemes` are the int8 schemes it runs as int8; the first is the one it prefers.

    packages: what must be importable to convert; runs_here_with: what must be importable to execute it on this host
    (empty when it never executes on a development host, as Core ML off a Mac or TensorRT without a GPU);
    evidence_with: what must be importable for the optional extra evidence (engines, builder's op report).
    quant: one int8 specification per scheme. suffix: of the file or folder that the exporter writes.
    """

    name: str
    title: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    runs_here_with: tuple[str, ...] = ()
    evidence_with: tuple[str, ...] = ()
    precisions: tuple[Precision, ...]
    schemes: tuple[Scheme, ...] = ()
    quant: tuple[QuantSpec, ...] = ()
    input_layout: Layout = "NCHW"
    timeout_s: float = 300.0
    memory_limit_gib: float = 8.0

    def missing(self) -> str | None:
        """The first package that is not installed, or None; looks it up without importing it."""
        return next((p for p in self.packages if not _installed(p)), None)

    def why_not(self, precision: Precision, scheme: Scheme | None = None) -> str | None:
        """The reason this target cannot take the precision, or None when it can.

        >>> Target(name="t", title="T", suffix=".t", extra="t", packages=(), precisions=("fp32",)).why_not("int8")
        'T takes fp32, not int8'
        """
        if precision not in self.precisions:
            return f"{self.title} takes {', '.join(self.precisions)}, not {precision}"
        if precision == "int8" and scheme is not None and scheme not in self.schemes:
            return f"{self.title} runs int8 with {' or '.join(self.schemes)} activations, not {scheme}"
        return None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
