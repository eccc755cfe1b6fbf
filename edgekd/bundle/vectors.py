"""Parity vectors: a few real images and the logits that every artifact must reproduce, wherever it runs.

`parity/` holds each array twice: `.npy` for Python, and the same bytes without header as `.bin` for trtexec and C++.
images: uint8 [N, C, H, W]. inputs: the same, normalised, float32. golden-PROGRAM: float32 logits [N, classes].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError
from edgekd.files import write_whole

FOLDER, IMAGES, INPUTS, GOLDEN = "parity", "images", "inputs", "golden-"
IDENTICAL_DB = 200.0
IMAGES_SHIPPED = 32
NORMALISE_ERROR_MAX = 1e-5


def write_parity(
    folder: Path,
    *,
    images: npt.NDArray[np.uint8],
    preprocessing: Mapping[str, Any],
    programs: Mapping[str, Path],
) -> list[Path]:
    """Write the vectors; the golden logits come from the programs (`{"float": float.pt2, "int8": int8.pt2}`).

    images: uint8 [N, C, H, W] of the test split; 32 are plenty, and every file made from them is shipped.
    Raises: InputError: not uint8 NCHW images, or a program cannot be loaded.
    """
    from edgekd.data import Preprocessing

    if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
        raise InputError(f"parity vectors take uint8 images [N, C, H, W], got {images.dtype} {list(images.shape)}")
    import torch

    inputs = Preprocessing.from_dict(preprocessing).normalise(torch.from_numpy(images)).numpy()
    arrays: dict[str, npt.NDArray[Any]] = {IMAGES: images, INPUTS: inputs}
    arrays |= {GOLDEN + name: _golden(path, inputs) for name, path in programs.items()}
    return [file for name, array in arrays.items() for file in _write_both(folder, name, array)]


def _golden(program: Path, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits float32 [N, classes] of a program, one image at a time (programs have batch 1)."""
    import torch

    from edgekd.quant import load_program

    module = load_program(program).module()
    with torch.no_grad():
        rows = [module(torch.from_numpy(inputs[i : i + 1])).float() for i in range(len(inputs))]
    return torch.cat(rows).numpy()


def _write_both(folder: Path, name: str, array: npt.NDArray[Any]) -> list[Path]:
    def save(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, np.ascontiguousarray(array), allow_pickle=False)

    def raw(temporary: Path) -> None:
        temporary.write_bytes(np.ascontiguousarray(array).tobytes())

    return [write_whole(folder / f"{name}.npy", save), write_whole(folder / f"{name}.bin", raw)]


def load_array(path: Path) -> npt.NDArray[Any]:
    """An array of `parity/`. Raises: InputError: missing, or not a plain .npy (pickled objects are refused)."""
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("no such parity vector", where=path.name) from error
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"not a plain .npy array ({error})", where=path.name) from error
    return array


def normalise_error(images: npt.NDArray[np.uint8], inputs: npt.NDArray[Any], preprocessing: Mapping[str, Any]) -> float:
    """Largest difference between the shipped inputs and `(pixel / 255 - mean) / std`, in input units.

    It catches double normalisation and swapped channels before anything runs on a device.

    >>> p = {"mean": [0.5], "std": [0.5]}
    >>> normalise_error(np.uint8([[[[255]]]]), np.float32([[[[1.0]]]]), p)
    0.0
    """
    mean, std = (np.asarray(preprocessing[key], dtype=np.float64).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    if inputs.shape != images.shape:
        return math.inf
    return float(np.abs((images / 255.0 - mean) / std - inputs).max())


def compare(golden: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> tuple[float, int]:
    """Signal to noise in dB (200 = identical) and the number of images whose top-1 differs.

    >>> compare(np.float32([[3.0, 4.0]]), np.float32([[3.0, 4.5]]))
    (20.0, 0)
    """
    wanted, got = golden.astype(np.float64), outputs.astype(np.float64)
    noise, signal = float(((wanted - got) ** 2).sum()), float((wanted**2).sum())
    snr_db = 10 * math.log10(signal / noise) if signal and noise else (0.0 if noise else IDENTICAL_DB)
    return min(snr_db, IDENTICAL_DB), int((wanted.argmax(axis=1) != got.argmax(axis=1)).sum())


def disagreements_allowed(n_images: int, min_agreement: float) -> int:
    """Images whose top-1 may differ: a near-tie may flip on another CPU, so a small set allows one.

    >>> disagreements_allowed(32, 0.99), disagreements_allowed(512, 0.99), disagreements_allowed(32, 1.0)
    (1, 6, 0)
    """
    return math.ceil(round((1 - min_agreement) * n_images, 9))
