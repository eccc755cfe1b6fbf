"""The reference that artifacts are held against gives the program's numbers, faster and for many images at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd.data.preprocessing import Preprocessing
from edgekd.export.check_reference import answering, folded, free_batch
from edgekd.quant import export_float, ptq
from edgekd.targets.spec import QuantSpec

PREPROCESSING = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (48, 1, 8, 8), dtype=np.uint8)


class Shapely(torch.nn.Module):
    """Spells its batch in a reshape, as attention and channel shuffles do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.head = torch.nn.Linear(4 * 64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image).relu()
        x = x.reshape(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8)
        return self.head(x.view(1, -1))


@pytest.fixture(scope="module")
def int8_program(pixels: np.ndarray) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    return ptq(Shapely().eval(), [image[None] for image in images], QuantSpec(scheme="affine"))


def test_weights_dequantised_once_give_the_same_numbers_bit_for_bit(int8_program, pixels):
    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    plain, fast = int8_program.module(check_guards=False), folded(int8_program)
    with torch.inference_mode():
        for image in images[:8]:
            assert torch.equal(plain(image[None]), fast(image[None]))


def test_a_program_with_its_batch_spelt_out_still_answers_many_images_at_once(int8_program, pixels):
    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    with torch.inference_mode():
        expected = torch.cat([int8_program.module(check_guards=False)(image[None]) for image in images])
        batched = free_batch(int8_program)(images)
    assert torch.equal(batched.argmax(1), expected.argmax(1))
    assert torch.equal(answering(int8_program, images)(images).argmax(1), expected.argmax(1))


def test_where_an_axis_of_one_is_no_batch_the_program_runs_image_by_image(pixels):
    class Mixing(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.reshape(1, 64).softmax(0) + image.reshape(1, 64)  # over the batch: wrong for several images

    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    program = export_float(Mixing().eval(), (1, 8, 8))
    found = answering(program, images)(images)
    assert torch.allclose(found, 1 + images.reshape(-1, 64))
