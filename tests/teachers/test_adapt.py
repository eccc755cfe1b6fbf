"""Claims about giving a teacher the student's input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.data import Preprocessing
from edgekd.errors import InputError
from edgekd.teachers import Teacher

GREY = Preprocessing(image_size=8, channels=1, mean=(0.3,), std=(0.4,))
RGB = Preprocessing(image_size=8, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def _teacher(preprocessing: Preprocessing) -> Teacher:
    module = nn.Sequential(nn.Flatten(), nn.Linear(preprocessing.channels * preprocessing.image_size**2, 3)).eval()
    return Teacher("t", module, preprocessing, num_classes=3, fingerprint="0")


def _pixels(channels: int, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8, generator=generator)


def test_the_teacher_sees_its_own_normalisation_of_the_same_pixels() -> None:
    student = Preprocessing(image_size=8, channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    teacher, pixels = _teacher(RGB), _pixels(3)
    adapted = teacher.adapt(student)
    torch.testing.assert_close(adapted.convert(student.normalise(pixels)), RGB.normalise(pixels))
    torch.testing.assert_close(adapted(student.normalise(pixels)), teacher.module(RGB.normalise(pixels)))


def test_equal_preprocessing_passes_the_input_through() -> None:
    x = RGB.normalise(_pixels(3))
    assert _teacher(RGB).adapt(RGB).convert(x) is x


def test_grey_becomes_three_equal_channels() -> None:
    pixels = _pixels(1)
    seen = _teacher(RGB).adapt(GREY).convert(GREY.normalise(pixels))
    torch.testing.assert_close(seen, RGB.normalise(pixels.expand(-1, 3, -1, -1)))


def test_colour_becomes_luma() -> None:
    pixels = _pixels(3)
    seen = _teacher(GREY).adapt(RGB).convert(RGB.normalise(pixels))
    luma = (pixels.float() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(seen, (luma - 0.3) / 0.4)


def test_size_follows_the_teacher() -> None:
    small = Preprocessing(image_size=4, channels=3, mean=RGB.mean, std=RGB.std)
    assert _teacher(RGB).adapt(small)(small.normalise(_pixels(3, 4))).shape == (2, 3)
    large = Preprocessing(image_size=16, channels=1, mean=GREY.mean, std=GREY.std)
    flat = torch.full((1, 1, 16, 16), 100, dtype=torch.uint8)
    seen = _teacher(GREY).adapt(large).convert(large.normalise(flat))
    torch.testing.assert_close(seen, GREY.normalise(flat[:, :, :8, :8]))


def test_the_adapted_teacher_stays_in_eval_mode_and_adds_no_weights() -> None:
    teacher = _teacher(RGB)
    adapted = teacher.adapt(GREY)
    assert not adapted.train().training
    assert set(adapted.state_dict()) == {f"module.{key}" for key in teacher.module.state_dict()}


def test_channels_that_cannot_be_converted_are_refused() -> None:
    four = Preprocessing(image_size=8, channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(InputError, match="teacher takes 3 channels, the student 4"):
        _teacher(RGB).adapt(four)
