"""Quantise-dequantise while training, on exactly the grid that conversion will write.

torchao's FusedMovingAvgObsFakeQuantize trains on another grid than `convert_pt2e` writes: its kernel centres a
symmetric range on [-128, 127] and ignores eps, so that scales are up to 1 % apart. Measured, fake-quantised against
converted: 35 dB (affine) and 32 dB (symmetric) with it, 39 and 38 dB with this module, at the same step time; and it
fails under bfloat16 autocast. Where operators share a grid it also averages their ranges (a pooled range is narrower),
which clips the wider one. Here scale and zero point follow the observer's own formula, ranges that share a grid are
joined, and a GPU never waits for the host.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from edgekd.quant.histogram import Grid
from edgekd.quant.observers import ActivationObserver, PerChannelWeightObserver, Range
from edgekd.targets.spec import Observer, QuantSpec

# Smallest step of a weight. The activations' 2**-12 would leave a channel of weights below .03 a few codes; with this
# one an int32 bias (steps of input step x weight step) still holds biases of several hundred.
WEIGHT_EPS = 2.0**-20
# Values of a batch that are looked at where a range may be cut: a step of training has no time for all of them.
SAMPLE = 2**12


class GridFakeQuantize(FakeQuantize):  # type: ignore[misc]  # torchao ships no types
    """Follows the range of what passes through it while `observing`, and always rounds to that range's integer grid.

    The gradient is the straight-through estimate: 1 inside the range, 0 outside.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.
    """

    observing = True
    fresh = True  # the next call is the first of a forward pass; QatModel says so

    def __init__(
        self,
        *args: Any,
        cuts: Observer = "minmax",
        percentile: float = 100.0,
        fixed: Range | None = None,
        **settings: Any,
    ) -> None:
        """cuts: what of a batch's range is followed; fixed: a range that no batch moves; settings as torchao's."""
        super().__init__(*args, **settings)
        self.cuts: Observer = cuts
        self.percentile = percentile
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same shape out as float32, under autocast too: the grid is computed in full precision."""
        x = x.float()
        if self.observing:
            self.observe(x.detach())
        observer = self.activation_post_process
        limits = (observer.quant_min, observer.quant_max)
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.ch_axis, *limits)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *limits)

    def observe(self, x: Tensor) -> None:
        """Move the range towards that of `x` (all the way the first time) and recompute scale and zero point.

        Later calls in one forward pass (operators that share a grid) widen what this pass has seen; they count once.
        """
        observer = self.activation_post_process
        low, high = torch.aminmax(x.flatten(1), dim=1) if self.is_per_channel else self._range(x)
        if self.fresh:
            self.fresh = False
            self.before = (observer.min_val.clone(), observer.max_val.clone())
            self.seen = (low, high)
        self.seen = (torch.minimum(self.seen[0], low), torch.maximum(self.seen[1], high))
        for average, before, seen in zip((observer.min_val, observer.max_val), self.before, self.seen, strict=True):
            _set(average, _follow(before, seen, observer.averaging_constant))
        scale, zero_point = self._grid(observer.min_val.clamp(max=0), observer.max_val.clamp(min=0))
        _set(self.scale, scale.reshape(-1))
        _set(self.zero_point, zero_point.reshape(-1))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero point), for torchao's conversion: the grid that was trained with."""
        return self.scale, self.zero_point

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of one batch; where values are cut off, of a sample of it, and without a GPU waiting for the host."""
        if self.fixed is not None:
            return x.new_tensor(self.fixed[0]), x.new_tensor(self.fixed[1])
        low, high = torch.aminmax(x)
        if self.cuts not in ("percentile", "mse"):
            return low, high
        values = x.reshape(-1)[:: max(1, x.numel() // SAMPLE) | 1]
        if self.cuts == "percentile":
            ordered = values.sort().values
            last = len(ordered) - 1
            kept = math.ceil(self.percentile / 100 * last)
            return ordered[last - kept].clamp(max=0), ordered[kept].clamp(min=0)
        parts = torch.linspace(1, 0.2, 17, device=x.device)
        scale, zero_point = (
            value[:, None] for value in self._grid((low * parts).clamp(max=0), (high * parts).clamp(min=0))
        )
        observer = self.activation_post_process
        codes = (torch.round(values / scale) + zero_point).clamp(observer.quant_min, observer.quant_max)
        best = ((codes - zero_point) * scale - values).square().sum(1).argmin()
        return low * parts[best], high * parts[best]

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        observer = self.activation_post_process
        symmetric = self.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
        return Grid(observer.quant_min, observer.quant_max, symmetric, observer.eps).parameters(low, high)


def _follow(average: Tensor, value: Tensor, constant: float) -> Tensor:
    """Exponential moving average; a range that was never observed is empty (per channel) or infinite."""
    if average.shape != value.shape:
        return value
    return torch.where(average.isinf(), value, average + constant * (value - average))


def _set(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape:
        buffer.resize_(value.shape)
    buffer.copy_(value)


def activation_spec(
    spec: QuantSpec, *, training: bool, whole_range: bool = False, fixed: Range | None = None
) -> QuantizationSpec:
    """Per-tensor int8 activations: a moving average of each batch's range in training, the observer's choice after it.

    In training "auto" follows the whole range: the network learns to live with it.

    whole_range: never cut the range where the observer is "auto": of an output, the largest values are the ones read.
    fixed: the range, where the operator's own values decide it.
    """
    scheme = torch.per_tensor_affine if spec.scheme == "affine" else torch.per_tensor_symmetric
    observer = "minmax" if whole_range and spec.observer == "auto" else spec.observer
    settings = {"eps": spec.eps, "observer": observer, "percentile": spec.percentile, "fixed": fixed}
    follow = GridFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver,
        eps=spec.eps,
        averaging_constant=spec.observer_averaging_constant,
        cuts=observer,
        percentile=spec.percentile,
        fixed=fixed,
    )
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=spec.activation_min,
        quant_max=spec.activation_max,
        qscheme=scheme,
        observer_or_fake_quant_ctr=follow if training else ActivationObserver.with_args(**settings),
    )


def weight_spec(spec: QuantSpec, *, training: bool) -> QuantizationSpec:
    """Per-channel symmetric int8 weights along axis 0, on [-weight_max, weight_max]; the range is the weight's own."""
    follow = GridFakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, eps=WEIGHT_EPS, averaging_constant=1.0
    )
    watch = PerChannelWeightObserver.with_args(eps=WEIGHT_EPS, clips=spec.observer in ("auto", "mse"))
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-spec.weight_max,
        quant_max=spec.weight_max,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=follow if training else watch,
    )
