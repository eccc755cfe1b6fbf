"""Claims about splits, held-out parts, samples and fingerprints."""

from __future__ import annotations

import pytest
import torch

from edgekd.data import Dataset, TensorSplit
from edgekd.data.dataset import (
    ResizedSplit,
    channel_statistics,
    fingerprint_of,
    fit_square,
    hold_out,
    resized,
    stratified_order,
)
from edgekd.errors import InputError


def _split(labels: list[int] | torch.Tensor, size: int = 4) -> TensorSplit:
    numbers = torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(numbers), 1, size, size), dtype=torch.uint8, generator=generator)
    return TensorSplit(pixels, numbers)


def test_hold_out_takes_a_tenth_in_proportion_and_shares_no_image_with_train() -> None:
    source = _split([0] * 400 + [1] * 200)
    train, val = hold_out(source, seed=0)
    assert val.labels.bincount().tolist() == [40, 20]
    assert sorted([*train.index.tolist(), *val.index.tolist()]) == list(range(600))


def test_hold_out_takes_5000_of_a_large_training_split() -> None:
    train, val = hold_out(_split(torch.arange(50_000) % 10, size=1), seed=0)
    assert (len(train), len(val)) == (45_000, 5_000)
    assert val.labels.bincount().tolist() == [500] * 10


def test_hold_out_takes_one_of_every_class_even_when_a_tenth_would_not() -> None:
    train, val = hold_out(_split([0, 0, 1, 1, 2, 2]), seed=0)
    assert val.labels.tolist() == [0, 1, 2]
    assert train.labels.tolist() == [0, 1, 2]


def test_hold_out_depends_on_the_seed_only() -> None:
    source = _split([0, 1] * 100)
    assert torch.equal(hold_out(source, seed=1)[1].index, hold_out(source, seed=1)[1].index)
    assert not torch.equal(hold_out(source, seed=1)[1].index, hold_out(source, seed=2)[1].index)


def test_hold_out_refuses_a_class_with_one_image() -> None:
    with pytest.raises(InputError, match="class 1 has 1 for training"):
        hold_out(_split([0, 0, 0, 1]), seed=0)


@pytest.mark.parametrize("n", [3, 30, 99])
def test_every_prefix_of_the_stratified_order_is_in_proportion(n: int) -> None:
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    counts = labels[stratified_order(labels, seed=5)[:n]].bincount(minlength=3)
    assert all(abs(int(c) - n * share) <= 1 for c, share in zip(counts, (0.6, 0.3, 0.1), strict=True))
    assert int(counts.min()) >= 1


def test_sample_is_stratified_repeatable_and_never_longer_than_the_split(tiny_dataset: Dataset) -> None:
    index = tiny_dataset.sample("train", 50, seed=3)
    assert tiny_dataset.train.labels[index].bincount().tolist() == [5] * 10
    assert torch.equal(index, tiny_dataset.sample("train", 50, seed=3))
    assert not torch.equal(index, tiny_dataset.sample("train", 50, seed=4))
    assert sorted(tiny_dataset.sample("val", 10_000).tolist()) == list(range(100))


def test_images_come_in_the_order_asked_for() -> None:
    split = _split([0, 1, 2])
    assert torch.equal(split.images([2, 0]), split.pixels[[2, 0]])
    _, val = hold_out(_split([0, 1] * 50), seed=0)
    assert torch.equal(val.images([1]), val.source.images(val.index[[1]]))


def test_fit_square_crops_the_centre() -> None:
    wide = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    wide[..., 2:6] = 200
    assert fit_square(wide, 4).unique().tolist() == [200]


def test_resizing_ahead_and_as_read_agree() -> None:
    split = _split([0, 1] * 20, size=7)
    ahead, lazy = resized(split, 5), ResizedSplit(split, 5)
    assert isinstance(ahead, TensorSplit)
    assert torch.equal(ahead.images([3, 9]), lazy.images([3, 9]))
    assert torch.equal(lazy.labels, split.labels)


def test_data_too_large_to_cache_are_resized_as_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.data.dataset.CACHE_LIMIT_BYTES", 10)
    assert isinstance(resized(_split([0, 1], size=7), 5), ResizedSplit)


def test_statistics_agree_with_torch_and_constant_channels_keep_a_positive_std() -> None:
    split = _split([0] * 1100, size=6)
    mean, std = channel_statistics(split)
    scaled = split.pixels.double() / 255
    assert mean[0] == pytest.approx(float(scaled.mean()), abs=1e-4)
    assert std[0] == pytest.approx(float(scaled.std()), abs=1e-4)
    flat = TensorSplit(torch.full((3, 1, 2, 2), 9, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    assert channel_statistics(flat)[1][0] > 0


def test_statistics_of_an_even_sample_are_close_to_those_of_all() -> None:
    split = _split([0] * 2000)
    assert channel_statistics(split, element_limit=8000)[0][0] == pytest.approx(
        channel_statistics(split)[0][0], abs=0.02
    )


def test_the_fingerprint_changes_with_a_pixel_a_label_and_the_size() -> None:
    split = _split([0, 1, 0])
    first = fingerprint_of(split, image_size=4)
    pixels, labels = split.pixels.clone(), split.labels.clone()
    pixels[1, 0, 2, 3] ^= 1
    labels[2] = 1
    others = {
        fingerprint_of(TensorSplit(pixels, split.labels), image_size=4),
        fingerprint_of(TensorSplit(split.pixels, labels), image_size=4),
        fingerprint_of(split, image_size=5),
    }
    assert fingerprint_of(split, image_size=4) == first
    assert len(others | {first}) == 4


def test_splits_refuse_other_types_and_lengths() -> None:
    with pytest.raises(ValueError, match="expected uint8 NCHW"):
        TensorSplit(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        TensorSplit(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


def test_the_tiny_dataset_can_be_learned_by_nearest_class_mean(tiny_dataset: Dataset) -> None:
    train, test = tiny_dataset.train, tiny_dataset.test
    pixels = train.images(range(len(train))).float().flatten(1)
    means = torch.stack([pixels[train.labels == c].mean(0) for c in range(10)])
    nearest = torch.cdist(test.images(range(len(test))).float().flatten(1), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.95
