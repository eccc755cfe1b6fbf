"""Claims about the one place where images become a model's input."""

from __future__ import annotations

import pytest
import torch

from edgekd.data import Preprocessing
from edgekd.errors import InputError

RGB = Preprocessing(image_size=4, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_normalise_agrees_with_the_textbook_formula() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (RGB.mean, RGB.std))
    torch.testing.assert_close(RGB.normalise(images), (images.float() / 255 - mean) / std)


def test_survives_json_round_trip_with_lists() -> None:
    assert RGB.to_dict()["mean"] == [0.5, 0.4, 0.3]
    assert Preprocessing.from_dict(RGB.to_dict()) == RGB


def test_refuses_float_images_and_other_channel_counts() -> None:
    with pytest.raises(ValueError, match="takes uint8"):
        RGB.normalise(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\)"):
        RGB.normalise(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"std": [0.0, 1.0, 1.0]}, "must be positive"),
        ({"mean": [0.5]}, "3 channels but 1 means"),
        ({"image_size": 0}, "must be >= 1"),
        ({"mean": ["a", "b", "c"]}, "not a number"),
    ],
)
def test_bad_documents_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Preprocessing.from_dict({**RGB.to_dict(), **change})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match="missing key 'std'"):
        Preprocessing.from_dict({"image_size": 4, "channels": 1, "mean": [0.5]})
