"""Corruptions do what their names say, more so with the severity, and the same each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgekd.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from edgekd.data.dataset import TensorSplit
from edgekd.data.duplicates import duplicates
from edgekd.errors import InputError


def pictures(size: int, channels: int = 3) -> Tensor:
    """Gradients under a texture: structure to lose, fine and coarse."""
    ramp = torch.linspace(20, 200, size).expand(4, channels, size, size)
    texture = torch.randint(0, 40, ramp.shape, generator=torch.Generator().manual_seed(0))
    return (ramp + texture).to(torch.uint8)


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_more_severe_is_further_from_the_image(corruption: str, size: int) -> None:
    images = pictures(size)
    far = [(corrupt(images, corruption, s).float() - images.float()).square().mean().item() for s in SEVERITIES]
    assert 0 < far[0] < far[1] < far[2]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_equal_arguments_give_equal_images_of_the_same_form(corruption: str) -> None:
    for channels in (1, 2, 3):
        images = pictures(32, channels)
        before = images.clone()
        changed = corrupt(images, corruption, 3, seed=5)
        assert changed.shape == images.shape
        assert changed.dtype == torch.uint8
        assert torch.equal(changed, corrupt(images, corruption, 3, seed=5))
        assert torch.equal(images, before)


def test_noise_has_the_published_strength_and_the_seed_decides_it() -> None:
    grey = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    noise = corrupt(grey, "gaussian noise", 5, seed=1).float() / 255 - 128 / 255
    assert noise.std().item() == pytest.approx(0.10, rel=0.03)
    assert not torch.equal(corrupt(grey, "gaussian noise", 5, seed=1), corrupt(grey, "gaussian noise", 5, seed=2))


def test_blur_agrees_with_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    images = pictures(32)
    expected = gaussian_filter(images[0, 0].double().numpy() / 255, 1.0, mode="nearest", truncate=4.0)
    found = corrupt(images, "gaussian blur", 5)[0, 0].double().numpy() / 255
    assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-6


def test_jpeg_is_jpeg() -> None:
    image = pictures(32)
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    pillow.save(buffer, "JPEG", quality=40)
    expected = np.asarray(Image.open(buffer)).astype(int)
    found = corrupt(image, "jpeg", 5)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).mean() < 2


def test_bad_arguments_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'gaussian blur'"):
        corrupt(pictures(32), "gausian blur", 1)
    with pytest.raises(InputError, match="give 1 to 5"):
        corrupt(pictures(32), "jpeg", 6)
    with pytest.raises(ValueError, match="uint8"):
        corrupt(pictures(32).float(), "jpeg", 1)


def test_copies_across_splits_are_counted() -> None:
    images = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(50, dtype=torch.int64)
    train, val = TensorSplit(images[:30], labels[:30]), TensorSplit(images[30:40], labels[30:40])
    test = TensorSplit(torch.cat([images[28:32], images[40:]]), labels[:14])
    assert duplicates(test, train, val) == 4
    assert duplicates(TensorSplit(images[40:], labels[40:]), train, val) == 0
