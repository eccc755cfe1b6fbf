"""Claims about random flips and shifts."""

from __future__ import annotations

import pytest
import torch

from edgekd.data import augment


def _batch(n: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _augment(images: torch.Tensor, seed: int, *, flip: bool = True, shift_px: int = 2) -> torch.Tensor:
    return augment(images, generator=torch.Generator().manual_seed(seed), flip=flip, shift_px=shift_px)


def _plain(image: torch.Tensor, dy: int, dx: int, mirrored: bool, pad: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(image.float()[None], (pad,) * 4, mode="reflect")[0]
    _, height, width = image.shape
    cut = padded[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width]
    return (cut.flip(2) if mirrored else cut).to(torch.uint8)


def test_every_sample_is_a_reflect_padded_crop_perhaps_mirrored() -> None:
    images = _batch(12)
    moves = set()
    for image, out in zip(images, _augment(images, 1), strict=True):
        found = [
            (dy, dx, mirrored)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            for mirrored in (False, True)
            if torch.equal(_plain(image, dy, dx, mirrored, 2), out)
        ]
        assert found
        moves.add(found[0])
    assert len(moves) > 6  # drawn per sample, not per batch


def test_same_generator_state_same_result_and_another_seed_another() -> None:
    images = _batch()
    assert torch.equal(_augment(images, 3), _augment(images, 3))
    assert not torch.equal(_augment(images, 3), _augment(images, 4))


def test_without_flip_and_shift_it_is_the_identity_and_the_input_is_untouched() -> None:
    images = _batch()
    before = images.clone()
    assert torch.equal(_augment(images, 0, flip=False, shift_px=0), before)
    _augment(images, 0)
    assert torch.equal(images, before)


def test_about_half_are_mirrored() -> None:
    images = _batch(2000)
    mirrored = (_augment(images, 0, shift_px=0) == images.flip(3)).flatten(1).all(1)
    assert 0.45 < mirrored.float().mean() < 0.55


def test_a_shift_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shift_px must be in \[0, 7\)"):
        _augment(_batch(), 0, shift_px=7)
