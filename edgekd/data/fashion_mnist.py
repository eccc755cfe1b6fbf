"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT), and any other data in the same IDX files.

Looked for in this order: the folder in EDGEKD_DATA, the Debian package `dataset-fashion-mnist`, the cache, a download
into the cache, and last the subset that ships with edgekd, whose dataset says so in its note.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from edgekd.data.assemble import from_tensors
from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.data.download import cache_folder, fetch
from edgekd.errors import InputError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SUBSET_NOTE = "subset: smoke numbers only"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# torchvision 0.29, torchvision/datasets/mnist.py
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# MNIST and its other replacements use the same file names; the first labels tell which data these are.
_LABELS_SHA256 = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"


def load_fashion_mnist(*, image_size: int | None, seed: int) -> Dataset:
    """Fashion-MNIST from the first place that has it; offline and without the Debian package, the packaged subset."""
    named = os.environ.get("EDGEKD_DATA")
    cached = cache_folder() / "fashion-mnist"
    for folder in [*([Path(named).expanduser()] if named else []), DEBIAN_FOLDER, cached]:
        if (found := idx_folder(folder)) is not None:
            return load_idx_folder(found, image_size=image_size, seed=seed)
    if fetch(BASE_URL, MD5, cached) is None:
        return load_idx_folder(cached, image_size=image_size, seed=seed)
    return load_subset(image_size=image_size, seed=seed)


def idx_folder(folder: Path) -> Path | None:
    """The folder itself or its torchvision sub-folder, whichever holds the IDX files; None where neither does."""
    for candidate in (folder, folder / "FashionMNIST" / "raw"):
        if any((candidate / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in (".gz", "")):
            return candidate
    return None


def load_idx_folder(folder: Path, *, image_size: int | None, seed: int) -> Dataset:
    """Four IDX files, compressed or not. Data other than Fashion-MNIST take the folder's name and numbered classes.

    Raises: InputError: a file is missing, damaged, or does not hold what its name says.
    """
    train, test = _split(folder, "train"), _split(folder, "t10k")
    known = hashlib.sha256(train.labels.to(torch.uint8).numpy().tobytes()).hexdigest() == _LABELS_SHA256
    count = int(train.labels.max()) + 1
    return from_tensors(
        train,
        test,
        image_size=image_size,
        name="fashion-mnist" if known else folder.name,
        classes=CLASSES if known else tuple(str(i) for i in range(count)),
        horizontal_flip=known,
        seed=seed,
        where=folder,
    )


def load_subset(*, image_size: int | None, seed: int) -> Dataset:
    """The packaged 7,000 + 1,000 images: enough to see that everything works, too few to quote a number from."""
    with (resources.files("edgekd.data") / "assets" / "fashion-mnist-subset.npz").open("rb") as stream:
        arrays = np.load(stream, allow_pickle=False)
        parts = [
            TensorSplit(
                torch.from_numpy(arrays[f"x_{part}"]).unsqueeze(1),
                torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)),
            )
            for part in ("train", "test")
        ]
    return from_tensors(
        *parts,
        image_size=image_size,
        name="fashion-mnist",
        classes=CLASSES,
        note=SUBSET_NOTE,
        horizontal_flip=True,
        seed=seed,
        where="fashion-mnist subset",
    )


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An IDX file of unsigned bytes, gzipped or not. Raises: InputError: missing, damaged, or of another type.

    Source: yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT": 0 0 type rank, big-endian sizes, data.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, fix="the folder needs all four IDX files") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"damaged file ({error})", where=path, fix="fetch it again") from error
    rank = raw[3] if len(raw) > 3 else 0
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    start = 4 + 4 * rank
    if raw[:3] != b"\x00\x00\x08" or len(raw) - start != int(np.prod(shape)):
        raise InputError("not an IDX file of unsigned bytes, or cut short", where=path, fix="fetch it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _split(folder: Path, prefix: str) -> TensorSplit:
    images, labels = (_idx_file(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or numbers.ndim != 1 or len(pixels) != len(numbers):
        what = f"{images.name} holds {pixels.shape}, {labels.name} holds {numbers.shape}"
        raise InputError(what, where=folder, fix="expected (N, height, width) images and N labels")
    return TensorSplit(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(numbers.astype(np.int64)))


def _idx_file(folder: Path, stem: str) -> Path:
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"
