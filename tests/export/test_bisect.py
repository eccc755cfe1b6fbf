"""A layer that a converter breaks is found: by cutting the program short and converting the cuts for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.artifact import Artifact
from edgekd.data.preprocessing import Preprocessing
from edgekd.export import ExportRequest, export_one
from edgekd.export.bisect import bisect, cut, cut_points
from edgekd.quant import load_program, output_shapes, ptq, save_program
from edgekd.targets.spec import QuantSpec

PREPROCESSING = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.25,))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = x + self.left(x).relu()
        x = self.right(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def program(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    int8 = ptq(Net().eval(), [images], QuantSpec(scheme="affine"))
    return save_program(int8, tmp_path_factory.mktemp("program") / "int8.pt2")


class CorruptingExporter:
    """A real conversion of a program in which one layer's int8 weights were negated on the way."""

    def __init__(self, layer: str, folder: Path) -> None:
        self.layer, self.folder = layer, folder

    def __call__(self, request: ExportRequest, *, log: Path) -> Artifact:
        program = load_program(request.program)
        graph = program.module(check_guards=False)
        for point in graph.graph.nodes:
            layer = (point.meta.get("custom") or {}).get("edgekd_layer")
            if layer == self.layer and str(point.target) in ("aten.conv2d.default", "aten.linear.default"):
                stored = point.args[1].args[0].target
                program.state_dict[stored].neg_()
        self.folder.mkdir(exist_ok=True)
        corrupt = save_program(program, self.folder / f"{len(list(self.folder.iterdir()))}.pt2")
        return export_one(request.model_copy(update={"program": corrupt}), log=log)


def test_cuts_follow_the_program_and_name_its_layers(program: Path) -> None:
    loaded = load_program(program)
    points = cut_points(loaded)
    assert [point.layer for point in points] == ["stem", "left", "", "right", "", "head"]
    assert [point.operator for point in points] == ["conv2d", "conv2d", "add", "conv2d", "mean", "linear"]
    assert output_shapes(cut(loaded, points[1])) == ((1, 4, 8, 8),)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("null", marks=pytest.mark.slow),
        pytest.param("onnxruntime", marks=[pytest.mark.slow, pytest.mark.runtime]),
    ],
)
def test_a_corrupted_weight_is_traced_to_its_layer(
    target: str, program: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    request = ExportRequest(target=target, precision="int8", program=program, out=tmp_path / "out")
    broken = CorruptingExporter("right", tmp_path / "corrupt")
    found = bisect(request, pixels, PREPROCESSING, log_dir=tmp_path / "logs", convert=broken)
    assert (found.layer, found.operator) == ("right", "conv2d"), found
    assert found.after_db is not None
    assert found.after_db < 30
    assert found.before_db is not None
    assert found.before_db >= 30
    assert "the first break is layer 'right' (conv2d)" in found.text


def test_a_sound_exporter_is_not_blamed(program: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    request = ExportRequest(target="null", precision="int8", program=program, out=tmp_path / "out")
    found = bisect(request, pixels, PREPROCESSING, log_dir=tmp_path / "logs")
    assert found.layer == ""
    assert found.text.startswith("a fresh conversion of the whole program agrees (200.0 dB)")
    assert len(found.cuts) == 1
