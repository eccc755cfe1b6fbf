from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.quant.histogram import BINS, POWER, Grid, Histogram, chosen_range
from edgekd.targets.spec import Observer

AFFINE = Grid(-128, 127, symmetric=False, eps=2**-16)
# 16 steps: where cutting a tail off pays most.
FOUR_BITS = Grid(-8, 7, symmetric=False, eps=2**-16)
SYMMETRIC = Grid(-8, 7, symmetric=True, eps=2**-16)


NAMES: tuple[Observer, ...] = ("minmax", "percentile", "mse")


def seen(*images: torch.Tensor) -> Histogram:
    """One image at a time."""
    histogram = Histogram()
    for image in images:
        histogram.add(image[None])
    return histogram


def mean_error(values: torch.Tensor, grid: Grid, ends: tuple[float, float]) -> float:
    scale, zero_point = (v.item() for v in grid.parameters(*(torch.tensor([end]) for end in ends)))
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, int(zero_point), grid.quant_min, grid.quant_max)
    return float((rounded - values).abs().pow(POWER).mean())


def skewed(n: int = 20_000) -> torch.Tensor:
    """Mostly small, with a long tail on one side: what a ReLU leaves."""
    return torch.randn(n, generator=torch.Generator().manual_seed(0)).clamp(min=0) ** 3


def test_batches_add_up_to_what_one_batch_gives_whatever_their_order() -> None:
    small, large = torch.linspace(-1, 1, 1000), torch.linspace(-7, 9, 1000)
    growing, falling, at_once = seen(small, large), seen(large, small), Histogram()
    at_once.add(torch.stack([small, large]))
    for histogram in (growing, falling, at_once):
        assert (histogram.low, histogram.high) == (-7.0, 9.0)
        assert sum(histogram.counts.values()).sum() == 2000
        assert sum(histogram.counts.values())[BINS:].sum() == sum(int((image >= 0).sum()) for image in (small, large))
    assert growing.width == pytest.approx(8 / BINS * 2)  # 1 / BINS doubled until 9 fits in
    assert growing.images == falling.images == at_once.images
    assert growing.weighed().sum() == falling.weighed().sum() == at_once.weighed().sum() < 2000


def test_an_image_of_large_values_counts_as_a_part_of_what_it_holds() -> None:
    usual, large, silent = torch.full((3, 100), 1.5), torch.full((1, 100), 12.0), torch.zeros(5, 100)
    histogram = Histogram()
    histogram.add(torch.cat([usual, large, silent]))
    counts = dict(zip(*(part.tolist() for part in histogram.values()), strict=True))
    (of_zeros, of_usual, of_large) = (counts[centre] for centre in sorted(counts))
    assert (of_zeros, of_usual) == (500, 300)
    assert of_large == 100 * 2.0**-7  # 8 times the values are 2.4 * 3 octaves more


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30))
def test_every_value_lies_in_a_bin_that_is_counted(values: list[float]) -> None:
    histogram = seen(torch.tensor(values), torch.tensor(values) / 7)
    centres, _ = histogram.values()
    if not any(values):
        assert len(centres) == 0
        return
    assert sum(histogram.counts.values()).sum() == 2 * len(values)
    for value in values:
        assert (centres - value).abs().min() <= histogram.width * 0.501


def test_a_large_tensor_is_sampled_but_its_extremes_are_kept() -> None:
    values = torch.randn(2**18)
    values[12345] = 77.0
    histogram = seen(values)
    assert histogram.high == 77.0
    assert histogram.weighed().sum() < 2**17


def test_percentile_cuts_the_tail_and_not_the_bulk() -> None:
    values = torch.cat([torch.rand(9990), torch.full((10,), 50.0)])
    low, high = seen(values).percentile(99.0)
    assert low == 0
    assert 0.9 < high < 1.1
    assert seen(values).percentile(100.0)[1] == 50.0


@pytest.mark.parametrize("observer", ["mse", "percentile"])
def test_a_few_extreme_images_do_not_take_the_grid_from_the_others(observer: Observer) -> None:
    images = torch.randn(100, 2000, generator=torch.Generator().manual_seed(0))
    scaled = images * torch.where(torch.arange(100) < 3, 100.0, 1.0)[:, None]
    histograms = Histogram(), Histogram()
    for histogram, batch in zip(histograms, (images, scaled), strict=True):
        histogram.add(batch)
    usual, some = (chosen_range(histogram, AFFINE, observer, 99.99)[1] for histogram in histograms)
    assert some < 4 * usual


@pytest.mark.parametrize("grid", [FOUR_BITS, SYMMETRIC])
def test_the_best_range_has_less_error_than_the_whole_one_on_a_long_tail(grid: Grid) -> None:
    values = skewed()
    histogram = seen(values)
    whole, best = mean_error(values, grid, (histogram.low, histogram.high)), grid.best(histogram)
    assert mean_error(values, grid, best) < 0.8 * whole
    assert best[1] < histogram.high


def test_the_expected_error_is_the_error() -> None:
    values = skewed()
    histogram = seen(values)
    ends = torch.tensor([[0.0, 3.0], [0.0, float(values.max())]], dtype=torch.float64)
    expected = AFFINE.errors(histogram, ends[:, 0], ends[:, 1])
    for (low, high), error in zip(ends.tolist(), expected.tolist(), strict=True):
        assert error == pytest.approx(mean_error(values, AFFINE, (low, high)), rel=0.05)


def test_the_mse_observer_has_the_least_error_of_the_three() -> None:
    histogram = seen(skewed())
    ends = torch.tensor([chosen_range(histogram, FOUR_BITS, name, 99.9) for name in NAMES], dtype=torch.float64)
    errors = dict(zip(NAMES, FOUR_BITS.errors(histogram, ends[:, 0], ends[:, 1]).tolist(), strict=True))
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < 0.8 * errors["minmax"]


@pytest.mark.parametrize("observer", NAMES)
def test_a_tensor_of_zeros_has_a_range_all_the_same(observer: str) -> None:
    assert chosen_range(seen(torch.zeros(9)), AFFINE, observer, 99.9) == (0.0, 0.0)


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@pytest.mark.parametrize("std", [1.0, 0.5, 0.25])
def test_pixels_around_zero_are_not_all_halfway_between_two_codes(symmetric: bool, std: float) -> None:
    pixels = (torch.arange(256, dtype=torch.float64) / 255 - 0.5) / std
    grid = Grid(-128, 127, symmetric, 2**-16)
    scale, zero_point = grid.parameters(*(end[None] for end in (pixels.min(), pixels.max())))
    codes = pixels / scale + zero_point
    assert ((codes - codes.floor() - 0.5).abs() < 1e-3).sum() == 0
    assert codes.round().min() >= -128
    assert codes.round().max() <= 127


@pytest.mark.parametrize("below", [1.5, 2.5, 20.5, 127.5, 253.5])
def test_ends_on_codes_cost_a_hundredth_of_the_step_at_most(below: float) -> None:
    low, high = torch.tensor([-below]), torch.tensor([255 - below])  # as wide as 255 steps of 1
    scale, _ = AFFINE.parameters(low, high)
    assert 1 <= scale.item() <= 1.01
