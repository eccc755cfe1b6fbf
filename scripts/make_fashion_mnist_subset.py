"""Make the subset that edgekd ships: the first 700 training and 100 test images of every Fashion-MNIST class.

Run: python scripts/make_fashion_mnist_subset.py --data /usr/share/datasets/fashion-mnist

It writes edgekd/data/assets/fashion-mnist-subset.npz and prints its size and sha256, for the README beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from edgekd.data.fashion_mnist import read_idx
from edgekd.files import sha256_of, write_whole

SIZE_LIMIT_BYTES = 4_000_000
ASSET = Path(__file__).resolve().parents[1] / "edgekd" / "data" / "assets" / "fashion-mnist-subset.npz"


def first_of_every_class(folder: Path, prefix: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (10 per_class, 28, 28) and labels, in the order of the source."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    index = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
    return images[index], labels[index]


def make(folder: Path, out: Path) -> None:
    """Write the subset, refusing one that is too large to ship."""
    x_train, y_train = first_of_every_class(folder, "train", 700)
    x_test, y_test = first_of_every_class(folder, "t10k", 100)

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez_compressed(stream, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)

    write_whole(out, write)
    size_bytes = out.stat().st_size
    if size_bytes > SIZE_LIMIT_BYTES:
        raise SystemExit(f"{out}: {size_bytes} bytes, more than {SIZE_LIMIT_BYTES}")
    print(json.dumps({"train": len(x_train), "test": len(x_test), "size_bytes": size_bytes, "sha256": sha256_of(out)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=ASSET)
    args = parser.parse_args()
    make(args.data, args.out)
