"""Several outputs, forms of input and output, pixels and labels inside the artifact: real conversions of small nets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.artifact import Artifact
from edgekd.export import ExportRequest, why_refused
from edgekd.export.runner import worker_environment
from edgekd.quant import export_float, load_program, output_names, ptq, save_program
from edgekd.runtimes import open_session
from edgekd.targets import quant_spec_for

SHAPE, CLASSES = (3, 32, 32), 4
LABELS = ("cat", "dog", "bird", "fish")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EQUAL = {"image_size": 32, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
PER_CHANNEL = {"image_size": 32, "channels": 3, "mean": list(MEAN), "std": list(STD)}
Case = tuple[str, str, str, dict[str, Any]]  # name, precision, program, request fields

# One process per target, as under the runner, but with all its cases in it, and LiteRT's converter run once for a
# program: its other forms are written from the converter's file.
CONVERT_ALL = """
import json, sys
from pathlib import Path
from edgekd.export import tflite
from edgekd.export.request import ExportRequest
from edgekd.export.worker import convert
files, convert_program = {}, tflite._convert
def once(source, path, precision, *, layout):
    key = (*source.output_names, "fp32" if precision == "fp16" else precision, layout)
    if key not in files:
        convert_program(source, path, precision, layout=layout)
        files[key] = path.read_bytes()
    path.write_bytes(files[key])
tflite._convert = once
requests = [ExportRequest.model_validate_json(json.dumps(d)) for d in json.loads(Path(sys.argv[1]).read_text())]
for request in requests:
    request.out.mkdir(parents=True)
Path(sys.argv[2]).write_text(json.dumps([convert(request) for request in requests]))
"""


class Segmenter(nn.Module):
    """A gated residual and a channel shuffle, then a head per pixel and one per image, as in torchvision's models."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.gate = nn.Conv2d(8, 8, 1)
        self.pixels, self.scene = nn.Conv2d(8, 5, 1), nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        shuffled = self.body(x).reshape(-1, 2, 4, 16, 16).transpose(1, 2).reshape(-1, 8, 16, 16)
        x = x + shuffled * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        mask = nn.functional.interpolate(self.pixels(x), scale_factor=2.0, mode="bilinear")
        return {"out": mask, "scene": self.scene(x.mean((2, 3)))}


class Classifier(Segmenter):
    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image)["scene"] * 10


CASES: dict[str, list[Case]] = {
    "tflite": [
        ("several", "fp32", "several", {}),
        ("labels", "fp32", "float", {"preprocessing": EQUAL}),
        ("pixels", "fp32", "float", {"fold_preprocessing": True}),
        ("int8-pixels", "int8", "affine", {"fold_preprocessing": True}),
        ("int8-float", "int8", "affine", {"io_dtype": "float32"}),
        ("int8-uint8", "int8", "affine", {"io_dtype": "uint8"}),
        ("int8", "int8", "affine", {}),
    ],
    "onnxruntime": [
        ("several", "fp32", "several", {}),
        ("int8-pixels", "int8", "affine", {"fold_preprocessing": True}),
    ],
    "openvino": [
        ("several", "fp32", "several", {}),
        ("int8-pixels", "int8", "affine", {"fold_preprocessing": True}),
        ("nhwc", "fp32", "float", {"input_layout": "NHWC"}),
    ],
    "coreml": [
        ("several", "fp16", "several", {}),
        ("pixels", "fp32", "float", {"fold_preprocessing": True}),
        ("pixels-equal", "fp32", "float", {"fold_preprocessing": True, "preprocessing": EQUAL}),
    ],
    "tensorrt": [("several", "fp16", "several", {})],
    "null": [("several", "fp32", "several", {})],
}
BARS_DB = {"fp32": 90.0, "fp16": 45.0, "int8": 28.0}
ALL = [pytest.param(t, c[0], id=f"{t}-{c[0]}", marks=pytest.mark.runtime) for t, cases in CASES.items() for c in cases]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net, folder = Segmenter().train(), tmp_path_factory.mktemp("programs")
    batches = [torch.randn(16, *SHAPE) for _ in range(4)]
    with torch.no_grad():
        for batch in batches * 4:
            net(batch)
    single = Classifier()
    single.load_state_dict(net.state_dict())
    save_program(export_float(net.eval(), SHAPE, outputs="all"), folder / "several.pt2")
    save_program(export_float(single.eval(), SHAPE), folder / "float.pt2")
    save_program(ptq(single.eval(), batches, quant_spec_for("tflite")), folder / "affine.pt2")
    return folder


@pytest.fixture(scope="module")
def converted(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Artifact]]:
    @cache
    def convert(target: str) -> dict[str, Artifact]:
        folder = tmp_path_factory.mktemp(target)
        requests = [
            ExportRequest.model_validate(
                {
                    "target": target,
                    "precision": precision,
                    "program": programs / f"{program}.pt2",
                    "out": folder / name,
                    "labels": LABELS,
                    "preprocessing": PER_CHANNEL,
                    **fields,
                }
            )
            for name, precision, program, fields in CASES[target]
        ]
        assert [why_refused(request) for request in requests] == [None] * len(requests)
        (folder / "in.json").write_text(json.dumps([r.model_dump(mode="json") for r in requests]))
        command = [sys.executable, "-P", "-c", CONVERT_ALL, str(folder / "in.json"), str(folder / "out.json")]
        with (folder / "log").open("wb") as log:
            status = subprocess.call(command, stdout=log, stderr=log, env=worker_environment(os.environ, 1))
        assert status == 0, (folder / "log").read_text()[-2000:]
        documents = json.loads((folder / "out.json").read_text())
        assert not [d for d in documents if "artifact" not in d]
        return {r.out.name: Artifact.model_validate(d["artifact"]) for r, d in zip(requests, documents, strict=True)}

    return convert


def case(target: str, name: str) -> Case:
    return next(c for c in CASES[target] if c[0] == name)


def normalised(pixels: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    mean, std = (np.array(preprocessing[key], np.float32).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    return ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize(("target", "name"), ALL)
def test_every_output_is_the_programs_own_whatever_the_form(converted, programs, target, name):
    _, precision, program, fields = case(target, name)
    artifact = converted(target)[name]
    session, loaded = open_session(artifact), load_program(programs / f"{program}.pt2")
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    images = normalised(pixels, fields.get("preprocessing", PER_CHANNEL))
    assert artifact.inputs[0].holds == ("pixels" if "fold_preprocessing" in fields else "normalised")
    assert tuple(output.name for output in artifact.outputs) == output_names(loaded)
    given = pixels if artifact.inputs[0].holds == "pixels" else images
    module = loaded.module(check_guards=False)
    for key in output_names(loaded):
        wanted, found = [], []
        for index in range(len(pixels)):
            with torch.no_grad():
                result = module(torch.from_numpy(images[index : index + 1]))
            outputs = result if isinstance(result, tuple) else (result,)
            wanted.append(outputs[output_names(loaded).index(key)].numpy())
            found.append(session.read_all(session.invoke(session.feed(given[index : index + 1])))[key])
        reference, got = np.concatenate(wanted), np.concatenate(found)
        assert got.shape == reference.shape
        noise = max(float(((reference - got) ** 2).sum()), 1e-30)
        assert 10 * np.log10(float((reference**2).sum()) / noise) > BARS_DB[precision], key


@pytest.mark.runtime
def test_litert_ends_are_of_the_types_that_were_asked_for(converted):
    def ends(name: str) -> tuple[str, str, str]:
        artifact = converted("tflite")[name]
        return artifact.inputs[0].dtype, artifact.outputs[0].dtype, artifact.inputs[0].layout

    assert ends("int8") == ("int8", "int8", "NHWC")
    assert ends("int8-uint8") == ("uint8", "uint8", "NHWC")
    assert ends("int8-float") == ("float32", "float32", "NHWC")
    assert ends("int8-pixels") == ("uint8", "float32", "NHWC")
    assert (
        converted("tflite")["int8-uint8"].inputs[0].zero_point == converted("tflite")["int8"].inputs[0].zero_point + 128
    )


@pytest.mark.runtime
def test_litert_transposes_for_the_channel_shuffle_and_the_mask_and_for_nothing_else(converted):
    from edgekd.export.tflite_file import TfliteFile

    def turned(name: str) -> list[tuple[int, ...]]:
        file = TfliteFile(converted("tflite")[name].path)
        pairs = zip(file.operators(), file.graph.operators, strict=True)
        return [file.shape(operator.outputs[0]) for kind, operator in pairs if kind == "TRANSPOSE"]

    assert turned("several") == [(256, 4, 2), (1, 5, 32, 32)]
    assert turned("int8") == [(256, 4, 2)]


@pytest.mark.runtime
def test_litert_labels_are_a_zip_in_the_file_and_the_signature_has_our_names(converted):
    from ai_edge_litert.interpreter import Interpreter

    path = converted("tflite")["labels"].path
    assert zipfile.ZipFile(path).read("labels.txt").decode().splitlines() == list(LABELS)
    signature = Interpreter(model_path=str(path)).get_signature_list()["serving_default"]
    assert signature == {"inputs": ["image"], "outputs": ["logits"]}


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["labels", "pixels", "int8-pixels"])
def test_mediapipe_reads_labels_and_normalisation_and_gives_the_artifacts_own_scores(converted, name):
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    artifact = converted("tflite")[name]
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(artifact.path)))
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
        said = classifier.classify(image).classifications[0].categories
    session, ours = open_session(artifact), pixels.transpose(2, 0, 1)[None]
    fed = ours if artifact.inputs[0].holds == "pixels" else normalised(ours, EQUAL)
    logits = session.read(session.invoke(session.feed(fed)))[0]
    assert [c.category_name for c in said] == [LABELS[i] for i in np.argsort(-logits)]
    assert [c.score for c in said] == pytest.approx(sorted(logits.tolist(), reverse=True), abs=1e-4)


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["pixels", "pixels-equal"])
def test_a_coreml_image_model_names_classes_and_keeps_its_logits(converted, name):
    from coremltools.models.utils import load_spec

    spec = load_spec(str(converted("coreml")[name].path))
    assert spec.description.input[0].type.WhichOneof("Type") == "imageType"
    assert spec.description.predictedFeatureName == "classLabel"
    assert [o.name for o in spec.description.output] == ["classLabel", "classLabel_probs", "logits"]


@pytest.mark.runtime
def test_openvino_takes_uint8_nhwc_with_the_preprocessing_in_its_graph(converted):
    import openvino

    model = openvino.Core().read_model(str(converted("openvino")["int8-pixels"].path))
    assert model.input("image").get_element_type() == openvino.Type.u8
    assert list(model.input("image").shape) == [1, 32, 32, 3]
    assert [next(iter(o.get_names())) for o in model.outputs] == ["logits"]


REFUSED = [
    ("tensorrt", "fp16", {"fold_preprocessing": True}, "the preprocessing cannot be folded in"),
    ("onnxruntime", "fp32", {"input_layout": "NHWC"}, "onnxruntime takes NCHW, not NHWC"),
    ("tflite", "fp32", {"io_dtype": "int8"}, "int8 input and output need an int8 program"),
    ("tflite", "int8", {"io_dtype": "int8", "fold_preprocessing": True}, "folded in, not int8"),
    ("openvino", "fp32", {"io_dtype": "uint8"}, "auto or float32, not uint8"),
    ("coreml", "fp16", {"fold_preprocessing": True, "preprocessing": {}}, "no preprocessing was given"),
]


@pytest.mark.parametrize(("target", "precision", "fields", "reason"), REFUSED)
def test_a_form_that_a_target_does_not_write_is_refused_with_the_reason(tmp_path, target, precision, fields, reason):
    plain = {"target": target, "precision": precision, "program": tmp_path / "p.pt2", "out": tmp_path / "o"}
    request = ExportRequest.model_validate({**plain, "preprocessing": EQUAL, **fields})
    assert reason in (why_refused(request) or "")
