"""Sessions of artifacts with several outputs and of those that take pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd.artifact import Artifact, TensorSpec
from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import InputError
from edgekd.runtimes import open_session
from edgekd.runtimes.session import arranged, output_positions

HALVES = Preprocessing(image_size=16, channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0))
VENDOR = pytest.mark.runtime
RUNTIMES = ["onnxruntime", *(pytest.param(name, marks=VENDOR) for name in ("tflite", "openvino", "coreml"))]


@pytest.mark.parametrize("target", ["null", *RUNTIMES, pytest.param("tensorrt", marks=VENDOR)])
def test_every_output_is_read_by_its_name_in_its_own_shape(two_headed, target):
    net, export = two_headed
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = {name: values.numpy() for name, values in net(image).items()}
    session = open_session(export(target, "normalised"))
    raw = session.invoke(session.feed(image.numpy()))
    outputs = session.read_all(raw)
    assert {name: values.shape for name, values in outputs.items()} == {"scores": (1, 5), "mask": (1, 2, 16, 16)}
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-5)
    assert np.array_equal(session.read(raw), outputs["scores"])


@pytest.mark.parametrize("target", RUNTIMES)
def test_an_artifact_that_takes_pixels_normalises_them_itself(two_headed, target):
    net, export = two_headed
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    artifact = export(target, "pixels")
    assert artifact.inputs[0].holds == "pixels"
    session = open_session(artifact)
    with torch.no_grad():
        expected = net(HALVES.normalise(pixels))["mask"].numpy()
    for images in (pixels.numpy(), pixels.float().numpy()):
        outputs = session.read_all(session.invoke(session.feed(images)))
        np.testing.assert_allclose(outputs["mask"], expected, atol=1e-4)


def image_of(**more) -> TensorSpec:
    return TensorSpec(**{"name": "image", "shape": (1, 4, 4, 3), "dtype": "uint8", "layout": "NHWC", **more})


def test_normalised_images_are_refused_where_pixels_are_wanted_and_the_other_way_round(tmp_path):
    normalised, pixels = np.full((1, 3, 4, 4), -2.1, np.float32), np.full((1, 3, 4, 4), 9, np.uint8)
    with pytest.raises(InputError, match=r"got values from -2\.1 to -2\.1; it takes pixels 0\.\.255"):
        arranged(normalised, image_of(holds="pixels"), tmp_path)
    with pytest.raises(InputError, match="got uint8 pixels; it takes normalised float32 images"):
        arranged(pixels, image_of(scale=0.02, zero_point=128), tmp_path)
    assert arranged(pixels, image_of(holds="pixels"), tmp_path).shape == (1, 4, 4, 3)


def test_unsigned_input_is_quantised_on_its_own_grid(tmp_path):
    images = np.array([-2.56, 0, 2.54, 99], np.float32).reshape(1, 1, 2, 2)
    spec = image_of(shape=(1, 2, 2, 1), scale=0.02, zero_point=128)
    assert arranged(images, spec, tmp_path).flatten().tolist() == [0, 128, 255, 255]


def declared(tmp_path, *names: str) -> Artifact:
    outputs = tuple(TensorSpec(name=name, shape=(1, 2), dtype="float32", layout="NC") for name in names)
    return Artifact(
        target="tflite", precision="fp32", path=tmp_path, inputs=(), outputs=outputs, size_bytes=1, sha256=""
    )


def test_outputs_are_found_by_name_else_by_position(tmp_path):
    artifact = declared(tmp_path, "scores", "mask")
    assert output_positions(artifact, ["mask", "extra", "scores"]) == [2, 0]
    assert output_positions(artifact, ["Identity", "Identity_1"]) == [0, 1]
    with pytest.raises(InputError, match=r"it has 1 outputs \(Identity\), not the 2 declared"):
        output_positions(artifact, ["Identity"])
