"""What every room's tests share."""

from __future__ import annotations

import os
import signal
import sys

# A shell that starts a job in the background makes it deaf to Ctrl-C, and every child too: tests send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "2")

from pathlib import Path

import pytest
import torch

from edgekd.data.dataset import Dataset, TensorSplit, channel_statistics, fingerprint_of
from edgekd.data.preprocessing import Preprocessing

# Modules that several rooms build their tests from; with --import-mode=importlib no test sees another file by itself.
sys.path.insert(0, str(Path(__file__).parent / "builders"))

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def _own_export_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache of exports; within a session they share one."""
    os.environ["EDGEKD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; what needs it is skipped in a clone that has none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which is absent")
    return folder


def _images(n: int, generator: torch.Generator, prototypes: torch.Tensor) -> TensorSplit:
    labels = torch.arange(n) % len(prototypes)
    noise = torch.randn(n, 1, 28, 28, generator=generator)
    pixels = (128 + 50 * prototypes[labels] + 40 * noise).clamp(0, 255).to(torch.uint8)
    return TensorSplit(pixels, labels)


@pytest.fixture(scope="session")
def tiny_dataset() -> Dataset:
    """Made, not real: 10 random low-frequency patterns under noise, 28x28x1, 600 train, 100 val, 200 test images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(10, 1, 7, 7, generator=generator)
    prototypes = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear")
    train, val, test = (_images(n, generator, prototypes) for n in (600, 100, 200))
    mean, std = channel_statistics(train)
    return Dataset(
        name="tiny",
        classes=tuple(f"pattern {i}" for i in range(10)),
        train=train,
        val=val,
        test=test,
        preprocessing=Preprocessing(image_size=28, channels=1, mean=mean, std=std),
        fingerprint=fingerprint_of(train, val, test, image_size=28),
        note="made by a test",
        horizontal_flip=False,
    )
