"""What calibration saw of a tensor, and which range of it loses least when it becomes an int8 grid.

torchao's HistogramObserver costs more than the network it observes: it re-bins every batch and searches with Python
loops. Here bins are anchored at zero and their width only ever doubles, so batches add up exactly.

Images are counted apart by how large their values are, because a few with extreme activations must not decide: the
error of a large image counts as a part of what it computes. EfficientNet-B0, briefly trained on CIFAR-10, has images
with 10 to 100 times the usual activations; with all values alike the mean test image kept 1.4 dB and 25% were right
where float has 43 (nearest rounding, biases as they were), with images weighed 17.2 dB and 42%.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekd.targets.spec import Observer

# Bins on either side of zero: at least 8 per step of the widest 8-bit grid, whatever the sign of the values.
BINS = 4096
# Values of one batch that are counted; the range itself always comes from all of them.
SAMPLE = 2**16
# Parts of the observed range that are tried as a grid.
SHRINKS = 40
SMALLEST_PART = 0.2
# The error that counts: a little more than its square, because what is cut off hurts later layers more than rounding
# does. Measured with corrected biases, KL(float || int8) with powers 2, 2.5 and 4: EfficientNet-Lite0 .0055, .0027,
# .0027; mobilenet_v3_small .0018, .0021, .0026; deit_tiny .0043, .0057, .0076. BRECQ's code (Li et al. 2021) takes 2.4.
POWER = 2.4
# An end of a range this near to the middle of two codes, in codes, counts as lying there.
HALFWAY = 0.02
# What a step may grow by to have both ends on codes: where one end is a few codes only, it would cost much more.
WIDER = 1.01
# The octave of an image of zeros, under that of any other.
SMALLEST = 2.0**-800
ZEROS = -1001


@dataclass
class Histogram:
    """Counts of values in 2 * BINS bins of one width around zero, by size of their image, and the exact range.

    >>> seen = Histogram()
    >>> seen.add(torch.tensor([[0.0, 1.0]])); seen.add(torch.tensor([[-3.0, 2.0], [1.0, 0.0]]))
    >>> seen.low, seen.high, sum(int(counts.sum()) for counts in seen.counts.values())
    (-3.0, 2.0, 6)
    """

    low: float = 0.0
    high: float = 0.0
    width: float = 0.0
    # By octave (exponent of two) of an image's (mean square) ** (POWER / 2): its values' bins, how many such images.
    counts: dict[int, Tensor] = field(default_factory=dict)
    images: Counter[int] = field(default_factory=Counter)
    calls: int = 0

    def add(self, values: Tensor) -> None:
        """Count a batch (images, ...); of a large one every n-th value, the first of them another one each time."""
        low, high = (float(end) for end in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if not largest:
            return
        self._widen(largest)
        flat = values.reshape(-1)
        step = max(1, flat.numel() // SAMPLE) | 1  # odd: an even step would walk down a few columns of an image only
        start = self.calls % step
        sampled, images = flat[start::step].cpu(), len(values) if values.ndim else 1
        image = torch.arange(start, flat.numel(), step) // (flat.numel() // images)
        octaves = _octaves(sampled, image, images)
        found, which = torch.unique(octaves, return_inverse=True)
        bins = torch.floor(sampled.double() / self.width).long().clamp_(-BINS, BINS - 1) + BINS
        if len(found) > 1:
            bins += 2 * BINS * which[image]
        counted = torch.bincount(bins, minlength=2 * BINS * len(found)).double().reshape(len(found), 2 * BINS)
        for octave, counts, each in zip(found.tolist(), counted, which.bincount().tolist(), strict=True):
            self.counts[octave] = self.counts[octave] + counts if octave in self.counts else counts
            self.images[octave] += each
        self.calls += 1

    def _widen(self, largest: float) -> None:
        self.width = self.width or largest / BINS
        while largest > self.width * BINS:
            for octave, counts in self.counts.items():
                pairs = counts.reshape(2, BINS // 2, 2).sum(-1)  # bins [-2, -1] and [0, 1] never straddle zero
                self.counts[octave] = torch.zeros_like(counts)
                self.counts[octave][BINS // 2 : BINS] = pairs[0]
                self.counts[octave][BINS : BINS + BINS // 2] = pairs[1]
            self.width *= 2

    def weighed(self) -> Tensor:
        """Counts (2 * BINS) of all images, those over the median size each by the median over its own."""
        usual = _median(self.images)
        total = torch.zeros(2 * BINS, dtype=torch.float64)
        for octave, counts in self.counts.items():
            total += counts * 2.0 ** min(0, usual - octave)
        return total

    def values(self) -> tuple[Tensor, Tensor]:
        """(centre, weighed count) of the bins that hold anything."""
        counts = self.weighed()
        held = counts.nonzero().reshape(-1)
        return ((held - BINS).double() + 0.5) * self.width, counts[held]

    def percentile(self, share: float) -> tuple[float, float]:
        """(low, high) that keep `share` percent of the values on either side; both within what was seen."""
        centres, counts = self.values()
        if not len(centres):
            return self.low, self.high
        below = torch.cumsum(counts, 0) / counts.sum()
        reach = share / 100
        high = centres[min(int((below < reach).sum()), len(centres) - 1)]
        low = centres[min(int((below <= 1 - reach).sum()), len(centres) - 1)]
        half = self.width / 2
        return max(self.low, min(float(low) - half, 0.0)), min(self.high, max(float(high) + half, 0.0))


def _octaves(values: Tensor, image: Tensor, images: int) -> Tensor:
    """Exponent of two of each image's (mean square) ** (POWER / 2): (images,), int64; ZEROS where all are zero."""
    sums = torch.bincount(image, weights=values * values, minlength=images).double()
    means = sums / torch.bincount(image, minlength=images).clamp(min=1)
    return torch.where(means > 0, (POWER / 2 * torch.log2(means.clamp(min=SMALLEST))).floor(), ZEROS).long()


def _median(images: Counter[int]) -> int:
    """The octave of the median image that is not zero throughout."""
    ordered = [octave for octave in sorted(images.elements()) if octave != ZEROS]
    return ordered[(len(ordered) - 1) // 2] if ordered else ZEROS


@dataclass(frozen=True)
class Grid:
    """An integer grid: how a range (low, high) becomes scale and zero point, in calibration and in training.

    An affine grid has zero at a whole code. Where that would put both ends halfway between codes, the step is wider,
    by a hundredth at most, so that they are codes: pixels from -1 to 1, 255 steps wide, would each lie on a tie, which
    every runtime rounds its own way (16% of a small net's codes differed between float32 and float64). For the same
    reason the largest value of a symmetric grid is a code, as in TensorRT.

    >>> grid = Grid(-128, 127, symmetric=False, eps=2**-16)
    >>> [float(value) for value in grid.parameters(torch.tensor([-1.0]), torch.tensor([1.0]))]
    [0.007874015718698502, -1.0]
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    eps: float

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges (k) to scales (k) and zero points (k); zero is always on the grid."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        steps = float(self.quant_max - self.quant_min)
        if self.symmetric:
            scale = (torch.maximum(-low, high) / self.quant_max).clamp(min=self.eps)
            return scale, torch.zeros_like(scale)
        scale = ((high - low) / steps).clamp(min=self.eps)
        below = (-low / scale).floor().clamp(1, steps - 1)
        halfway = (-low / scale - below - 0.5).abs() < HALFWAY
        wider = torch.maximum(-low / below, high / (steps - below))
        scale = torch.where(halfway & (wider <= WIDER * scale), wider, scale)
        zero_point = self.quant_min - torch.round(low / scale)
        return scale, zero_point.clamp(self.quant_min, self.quant_max)

    def errors(self, seen: Histogram, low: Tensor, high: Tensor) -> Tensor:
        """Expected |error| ** POWER of each range (k) over the values that were seen."""
        centres, counts = seen.values()
        scale, zero_point = (value[:, None] for value in self.parameters(low, high))
        codes = (torch.round(centres / scale) + zero_point).clamp(self.quant_min, self.quant_max)
        errors = ((codes - zero_point) * scale - centres).abs().pow(POWER) @ counts
        return errors / counts.sum().clamp(min=1)

    def best(self, seen: Histogram) -> tuple[float, float]:
        """(low, high) with the least expected error: the ends are moved in by turns, the far one first.

        Source: Banner et al. 2019, "Post training 4-bit quantization", section 3 (clipping), searched not solved.
        """
        low, high = seen.low, seen.high
        parts = torch.linspace(1, SMALLEST_PART, SHRINKS, dtype=torch.float64)
        for _ in range(2):
            for end in ("far", "near"):
                lows, highs = torch.full_like(parts, low), torch.full_like(parts, high)
                moves_high = (high >= -low) == (end == "far")
                moved = highs if moves_high else lows
                moved *= parts
                best = int(self.errors(seen, lows, highs).argmin())
                low, high = float(lows[best]), float(highs[best])
        return low, high


def chosen_range(seen: Histogram, grid: Grid, observer: Observer, share: float) -> tuple[float, float]:
    """The range that becomes the grid. "auto" is no range of one tensor: there the whole network decides."""
    if seen.calls and observer == "percentile":
        return seen.percentile(share)
    if seen.calls and observer == "mse":
        return grid.best(seen)
    return seen.low, seen.high
