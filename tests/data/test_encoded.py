"""Claims about decoding images, and about folders of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.data import load_data
from edgekd.data.encoded import EncodedSplit, common_size, decode
from edgekd.errors import InputError


def _bytes(array: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form)
    return stream.getvalue()


def _image(value: int, height: int = 12, width: int = 12, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels == 3 else (height, width)
    return (np.random.default_rng(value).integers(0, 60, shape) + value * 20).astype(np.uint8)


def make_folder(root: Path, *, parts: tuple[str, ...] = ("train", "val"), n: int = 6, channels: int = 3) -> Path:
    for p, part in enumerate(parts):
        for c, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                (root / part / name / f"{i}.png").write_bytes(_bytes(_image(p + c * 5 + i % 2, channels=channels)))
    return root


def test_decode_gives_the_stored_pixels_at_their_own_size() -> None:
    pixels = _image(3)
    assert np.array_equal(decode(_bytes(pixels), image_size=12, channels=3), pixels.transpose(2, 0, 1))


def test_decode_resizes_the_centre_square() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 8:22] = 200  # the filter reaches two pixels over the edge
    assert set(decode(_bytes(pixels), image_size=5, channels=3).ravel()) == {200}


def test_decode_turns_photos_as_their_exif_says() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    image, stream = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 3  # rotated by 180 degrees
    image.save(stream, "PNG", exif=exif)
    assert decode(stream.getvalue(), image_size=8, channels=1)[0, :4].max() == 0


def test_decode_scales_sixteen_bit_greys_instead_of_clipping_them() -> None:
    pixels = np.array([[0, 16384], [32768, 65535]], np.uint16)
    assert decode(_bytes(pixels), image_size=2, channels=1).ravel().tolist() == [0, 64, 128, 255]


def test_size_is_the_common_one_or_at_most_224() -> None:
    assert common_size([(96, 96)] * 3) == 96
    assert common_size([(500, 400), (300, 1000), (90, 800)]) == 224
    assert common_size([(50, 40), (30, 90), (30, 30)]) == 30


def test_a_folder_of_colour_images_becomes_a_dataset(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path / "pets")))
    assert (data.name, data.classes, data.horizontal_flip, data.note) == ("pets", ("cat", "dog"), True, "")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 2, 12)
    assert (data.preprocessing.image_size, data.preprocessing.channels) == (12, 3)
    expected = torch.from_numpy(_image(6).transpose(2, 0, 1))
    assert torch.equal(data.test.images([6])[0], expected)
    assert int(data.test.labels[6]) == 1


def test_train_val_and_test_are_used_as_named(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path, parts=("train", "val", "test"))))
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 12)
    assert torch.equal(data.val.images([0])[0], torch.from_numpy(_image(1).transpose(2, 0, 1)))


def test_grey_images_stay_grey_and_are_not_mirrored(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path, channels=1)))
    assert data.preprocessing.channels == 1
    assert not data.horizontal_flip


def test_image_size_is_obeyed(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path)), image_size=8)
    assert data.train.images([0]).shape == (1, 3, 8, 8)
    assert data.preprocessing.image_size == 8


def test_images_too_many_to_cache_are_decoded_as_read_with_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(make_folder(tmp_path))
    cached = load_data(folder)
    monkeypatch.setattr("edgekd.data.encoded.CACHE_LIMIT_BYTES", 100)
    read = load_data(folder)
    assert isinstance(read.test, EncodedSplit)
    assert read.fingerprint == cached.fingerprint
    assert torch.equal(read.train.images(torch.tensor([4, 0])), cached.train.images([4, 0]))
    assert torch.equal(read.val.labels, cached.val.labels)
    (tmp_path / "val" / "cat" / "0.png").unlink()
    with pytest.raises(InputError, match=r"0\.png: cannot be read any more"):
        read.test.images([0])


def test_the_fingerprint_follows_the_contents_of_files_of_the_same_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    before = load_data(str(folder)).fingerprint
    assert load_data(str(folder)).fingerprint == before
    file = folder / "train" / "cat" / "0.png"
    file.write_bytes(_bytes(_image(9)))
    assert load_data(str(folder)).fingerprint != before


def test_files_of_file_managers_are_not_images(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    assert len(load_data(str(folder)).train) == 10


def test_a_truncated_file_is_named_and_skipped_only_on_request(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    file = folder / "train" / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"dog/3\.png: cannot be decoded: .*truncated.*--skip-bad"):
        load_data(str(folder))
    data = load_data(str(folder), skip_bad=True)
    assert data.note == "1 unreadable images skipped"
    assert len(data.train) + len(data.val) == 11


def test_a_text_file_among_images_is_named_and_others_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for name in ("a.txt", "b.txt"):
        (folder / "val" / "cat" / name).write_text("hello")
    with pytest.raises(InputError, match=r"a\.txt: cannot be decoded: not an image \(and 1 more of 26\)"):
        load_data(str(folder))


def test_a_folder_without_any_image_says_so_even_when_skipping(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for file in folder.rglob("*.png"):
        file.write_text("hello")
    with pytest.raises(InputError, match="none of the 24 files is an image"):
        load_data(str(folder), skip_bad=True)


def test_a_folder_of_other_layout_says_what_it_holds_and_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no train/ in this folder \(it is empty\); expected FOLDER/train/CLASS"):
        load_data(str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match=r"no train/ in this folder \(it holds cat/\)"):
        load_data(str(tmp_path))
    make_folder(tmp_path / "x", parts=("train",))
    with pytest.raises(InputError, match="no val/ or test/"):
        load_data(str(tmp_path / "x"))


def test_class_folders_must_be_two_or_more_alike_and_filled(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "val" / "cow").mkdir()
    with pytest.raises(InputError, match="val: class folders differ from train/: adds 'cow'"):
        load_data(str(folder))
    (folder / "train" / "cow").mkdir()
    with pytest.raises(InputError, match="train/cow: class folder has no images"):
        load_data(str(folder))
    one = make_folder(tmp_path / "one")
    for part in ("train", "val"):
        (one / part / "dog").rename(one / part / ".dog")
    with pytest.raises(InputError, match=r"only one class folder \('cat'\)"):
        load_data(str(one))


def test_a_class_with_one_training_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few images: class 'cat' has 1 for training"):
        load_data(str(make_folder(tmp_path, n=1)))
