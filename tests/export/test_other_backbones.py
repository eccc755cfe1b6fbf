"""What backbones beyond the usual bring: patches of rank six, broadcast attention, normalised queries, many tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.artifact import Artifact
from edgekd.export import ExportOutcome, ExportRequest, export_all
from edgekd.export.tflite_file import TfliteFile
from edgekd.quant import export_float, load_program, ptq, save_program
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for

SHAPE = (3, 16, 16)


class Patches(nn.Module):
    """MobileViTv2's linear attention over 4x4 patches, then EdgeNeXt's normalised, then Swin's with a bias."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.local = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 1 + 2 * width, 1)
        self.qkv, self.bias = nn.Linear(width, 3 * width), nn.Parameter(torch.randn(64, 64))
        self.head = nn.Linear(width, 5)

    def linear_attention(self, x: Tensor) -> Tensor:
        patches = x.reshape(1, -1, 4, 4, 4, 4).permute(0, 1, 3, 5, 2, 4).reshape(1, -1, 16, 16)
        query, key, value = self.local(patches).split([1, x.shape[1], x.shape[1]], 1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True)
        mixed = value.relu() * context.expand_as(value)
        return mixed.reshape(1, -1, 4, 4, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = nn.functional.avg_pool2d(x + self.linear_attention(x), 2)
        query, key, value = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        query, key = (nn.functional.normalize(part, dim=-1) for part in (query, key))
        scores = query @ key.transpose(-2, -1) + self.bias / 10
        return self.head((scores.softmax(-1) @ value).mean(1)) * 10


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], ExportOutcome]:
    torch.manual_seed(0)
    net, folder = Patches().eval(), tmp_path_factory.mktemp("patches")
    programs = {
        "fp32": save_program(export_float(net, SHAPE), folder / "float.pt2"),
        "int8": save_program(ptq(net, list(images.split(1)), quant_spec_for("tflite")), folder / "int8.pt2"),
    }
    requests = [
        ExportRequest(target=target, precision=precision, program=programs[precision], out=folder / target / precision)
        for target in ("tflite", "onnxruntime", "openvino", "coreml")
        for precision in ("fp32", "int8")
    ]
    return {(found.target, found.precision): found for found in export_all(requests, folder / "logs")}


def artifact_of(outcome: ExportOutcome) -> Artifact:
    assert outcome.artifact is not None, outcome.reason
    return outcome.artifact


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["tflite", "onnxruntime", "openvino", "coreml"])
@pytest.mark.parametrize(("precision", "bar_db"), [("fp32", 90.0), ("int8", 30.0)])
def test_every_runtime_takes_it_and_gives_its_programs_logits(exported, images, target, precision, bar_db) -> None:
    artifact = artifact_of(exported[target, precision])
    program = load_program(next(artifact.path.parents[2].glob(f"{'float' if precision == 'fp32' else 'int8'}.pt2")))
    module = program.module(check_guards=False)
    with torch.no_grad():
        wanted = torch.cat([module(image[None]) for image in images]).numpy()
    found = logits(open_session(artifact, threads=1), images.numpy())
    kept = 10 * np.log10(np.square(wanted).sum() / (np.square(wanted - found).sum() + 1e-30))
    # Core ML's int8 is interpreted in fp16, whose roundings put some codes on the next step.
    assert kept > (20.0 if (target, precision) == ("coreml", "int8") else bar_db)


@pytest.mark.runtime
def test_litert_normalises_and_weighs_many_tokens_in_float(exported) -> None:
    file = TfliteFile(Path(artifact_of(exported["tflite", "int8"]).path))
    dtypes = Counter(
        (kind, file._declared(int(operator.outputs[0]))["dtype"])
        for kind, operator in zip(file.operators(), file.graph.operators, strict=True)
    )
    assert dtypes["SOFTMAX", "float32"] >= 1
    assert not {("SOFTMAX", "int8"), ("L2_NORMALIZATION", "int8"), ("DIV", "int8")} & dtypes.keys()
    assert dtypes["AVERAGE_POOL_2D", "int8"] == 0
