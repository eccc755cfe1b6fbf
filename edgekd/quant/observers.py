"""The modules that stand in a calibrated graph: they watch, round or let pass, and tell conversion their grid."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import ObserverBase

from edgekd.quant.histogram import Grid, Histogram, chosen_range
from edgekd.targets.spec import Observer

Mode = Literal["observe", "quantise", "pass"]
Range = tuple[float, float]
# Step of a tensor that was zero throughout: a tiny one would be out of the range that XNNPACK can rescale to.
DEAD_SCALE = 2.0**-7
# Parts of a weight channel's range that are tried: with 8 bits a best range below .8 of the largest value is rare.
WEIGHT_PARTS = tuple(1 - 0.02 * step for step in range(11))


class ActivationObserver(ObserverBase):  # type: ignore[misc]  # torchao ships no types
    """One int8 grid of activations. Operators that share a grid share the module, and their values are joined."""

    mode: Mode = "observe"

    def __init__(
        self, *, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, **settings: Any
    ) -> None:
        """settings: eps, observer, percentile (see `QuantSpec`), fixed (a range, or None); torchao adds is_dynamic."""
        super().__init__(dtype, False)
        self.qscheme, self.quant_min, self.quant_max = qscheme, quant_min, quant_max
        self.eps: float = settings["eps"]
        self.observer: Observer = settings["observer"]
        self.percentile: float = settings["percentile"]
        self.fixed: Range | None = settings["fixed"]
        self.seen = Histogram()
        self.scale, self.zero_point = 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        """The tensor itself, or on the grid in mode "quantise"."""
        if self.mode == "observe":
            self.seen.add(x.detach().float())
        if self.mode == "quantise":
            return self.rounded(x)
        return x

    def rounded(self, x: Tensor) -> Tensor:
        """The tensor on this grid, whatever the mode."""
        limits = (self.quant_min, self.quant_max)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *limits)

    def settle(self, observer: Observer = "mse") -> None:
        """Choose the grid from what was seen; `observer` is for those whose own is "auto"."""
        chosen: Observer = observer if self.observer == "auto" else self.observer
        self.cover(*(self.fixed or chosen_range(self.seen, self._grid, chosen, self.percentile)))

    def cover(self, low: float, high: float) -> None:
        """Take the grid of a range."""
        scale, zero_point = self._grid.parameters(torch.tensor([low]), torch.tensor([high]))
        self.scale, self.zero_point = float(scale), int(zero_point)
        if not (low or high):
            self.scale = DEAD_SCALE

    @property
    def _grid(self) -> Grid:
        return Grid(self.quant_min, self.quant_max, self.qscheme is torch.per_tensor_symmetric, self.eps)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero point), for torchao's conversion."""
        return torch.tensor([self.scale]), torch.tensor([self.zero_point])


class PerChannelWeightObserver(ObserverBase):  # type: ignore[misc]  # torchao ships no types
    """The symmetric int8 grids of a layer's weights, one per output channel; torchao wants `PerChannel` in the name."""

    mode: Mode = "observe"

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        ch_axis: int,
        **settings: Any,
    ) -> None:
        """settings: eps, clips (whether a channel's range may be cut where that lowers its squared error)."""
        super().__init__(dtype, False)
        self.qscheme, self.quant_min, self.quant_max, self.ch_axis = qscheme, quant_min, quant_max, ch_axis
        self.eps: float = settings["eps"]
        self.clips: bool = settings["clips"]
        self.scale = torch.ones(1)
        self.chosen: Tensor | None = None  # the weight on its grid, where not the nearest codes were chosen

    def forward(self, weight: Tensor) -> Tensor:
        """The weight itself, or on its grid in mode "quantise"."""
        if self.mode == "observe" and self.scale.numel() == 1:
            self.scale = self._scales(weight.detach())  # once: weights do not change between batches
        return self.rounded(weight) if self.mode == "quantise" else weight

    def settle(self, _observer: Observer = "mse") -> None:
        """Nothing to choose: the grids were chosen when the weight was seen."""

    def rounded(self, weight: Tensor) -> Tensor:
        """The weight on its grid, whatever the mode."""
        if self.chosen is not None:
            return self.chosen
        points = torch.zeros_like(self.scale, dtype=torch.int32)
        limits = (self.quant_min, self.quant_max)
        return torch.fake_quantize_per_channel_affine(weight, self.scale, points, self.ch_axis, *limits)

    def _scales(self, weight: Tensor) -> Tensor:
        rows = weight.transpose(0, self.ch_axis).flatten(1)
        whole = rows.abs().amax(1)
        scales = (whole / self.quant_max).clamp(min=self.eps)
        if not self.clips:
            return scales
        least = self._row_errors(rows, scales)
        best = scales
        for part in WEIGHT_PARTS[1:]:
            tried = (scales * part).clamp(min=self.eps)
            errors = self._row_errors(rows, tried)
            best = torch.where(errors < least, tried, best)
            least = torch.minimum(errors, least)
        return best

    def _row_errors(self, rows: Tensor, scales: Tensor) -> Tensor:
        points = torch.zeros_like(scales, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(rows, scales, points, 0, self.quant_min, self.quant_max)
        return (rounded - rows).square().sum(1)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(scales, zero points), for torchao's conversion."""
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int64)


def observers_of(graph: nn.Module) -> list[ActivationObserver | PerChannelWeightObserver]:
    """Every observer of a graph, once."""
    return [m for m in graph.modules() if isinstance(m, (ActivationObserver, PerChannelWeightObserver))]


def set_mode(graph: nn.Module, mode: Mode) -> None:
    """What every observer of a graph does from now on."""
    for observer in observers_of(graph):
        observer.mode = mode
