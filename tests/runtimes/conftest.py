"""A small real network, its float and int8 programs, and its artifacts as edgekd's own exporters make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from edgekd.artifact import Artifact
from edgekd.data.dataset import Dataset
from edgekd.data.preprocessing import Preprocessing

Exporter = Callable[[str, str], Artifact]
HALVES = Preprocessing(image_size=16, channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0))


class TinyNet(nn.Module):
    """Convolution, depthwise, residual add, pooling and linear: what a mobile classifier is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = x + self.pointwise(self.depthwise(x))
        return self.head(self.down(x).mean((2, 3)))


def fitted(net: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """A few steps of training, so that batch norm statistics and logits are those of a network in use."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    net.train()
    for step in range(25):
        batch = torch.arange(step * 64, step * 64 + 64) % len(images)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimiser.step()
    return net.eval()


@pytest.fixture(scope="session")
def images(tiny_dataset: Dataset) -> npt.NDArray[np.float32]:
    """64 normalised test images [64, 1, 28, 28]."""
    return tiny_dataset.preprocessing.normalise(tiny_dataset.test.images(range(64))).numpy()


@pytest.fixture(scope="session")
def multiply_adds() -> int:
    """Of one inference of `TinyNet`, counted on the module."""
    from edgekd.latency import trace_cost

    return trace_cost(TinyNet(), (1, 1, 28, 28)).macs


@pytest.fixture(scope="session")
def programs(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with float.pt2, affine.pt2 and symmetric.pt2 (int8 after calibration)."""
    from edgekd.quant import export_float, ptq, save_program
    from edgekd.targets.spec import QuantSpec

    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    pixels = tiny_dataset.preprocessing.normalise(tiny_dataset.train.images(range(len(tiny_dataset.train))))
    net = fitted(TinyNet(), pixels, tiny_dataset.train.labels)
    save_program(export_float(net, (1, 28, 28)), folder / "float.pt2")
    for scheme in ("affine", "symmetric"):
        save_program(ptq(net, [pixels[:256]], QuantSpec(scheme=scheme)), folder / f"{scheme}.pt2")
    return folder


@pytest.fixture(scope="session")
def exported(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Converts on first use: (target, precision) -> artifact. The null target's artifact is the program itself."""
    from edgekd.export import ExportRequest, export_one
    from edgekd.runtimes import open_model_file

    folder = tmp_path_factory.mktemp("artifacts")

    @cache
    def one(target: str, precision: str) -> Artifact:
        name = "float" if precision != "int8" else "symmetric" if target == "tensorrt" else "affine"
        if target == "null":
            return open_model_file(programs / f"{name}.pt2")
        out = folder / f"{target}-{precision}"
        request = ExportRequest(target=target, precision=precision, program=programs / f"{name}.pt2", out=out)
        return export_one(request, log=folder / f"{out.name}.log")

    return one


@pytest.fixture(scope="session")
def reference(programs: Path, images: npt.NDArray[np.float32]) -> Callable[[str], npt.NDArray[np.float32]]:
    """Logits of a program (by its file's stem) on `images`, computed by torch alone."""
    from edgekd.quant import load_program

    @cache
    def of(stem: str) -> npt.NDArray[np.float32]:
        module = load_program(programs / f"{stem}.pt2").module()
        with torch.no_grad():
            return torch.cat([module(image[None]) for image in torch.from_numpy(images)]).numpy()

    return of


class TwoHeaded(nn.Module):
    """Class logits and a map upsampled to the image: what a segmenter with an auxiliary head gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.mask, self.head = nn.Conv2d(16, 2, 1), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        mask = nn.functional.interpolate(self.mask(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return {"scores": self.head(x.mean((2, 3))), "mask": mask}


@pytest.fixture(scope="session")
def two_headed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exporter]:
    """The network and its float artifacts, converted on first use: (target, form) -> artifact.

    form: "normalised", or "pixels" with its preprocessing (`HALVES`) folded in.
    """
    from edgekd.export import ExportRequest, export_one
    from edgekd.quant import export_float, save_program
    from edgekd.runtimes import open_model_file

    folder = tmp_path_factory.mktemp("two-headed")
    torch.manual_seed(0)
    net = TwoHeaded().eval()
    program = save_program(export_float(net, (3, 16, 16), outputs="all"), folder / "float.pt2")

    @cache
    def one(target: str, form: str) -> Artifact:
        if target == "null":
            return open_model_file(program)
        out = folder / f"{target}-{form}"
        request = ExportRequest(
            target=target,
            precision="fp32",
            program=program,
            out=out,
            fold_preprocessing=form == "pixels",
            preprocessing=HALVES.to_dict(),
        )
        return export_one(request, log=folder / f"{out.name}.log")

    return net, one
