"""What LiteRT is given in a form that it is fast at: the file's operators, and the program's numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.export.request import ExportRequest
from edgekd.export.tflite import lower
from edgekd.export.tflite_file import TfliteFile
from edgekd.quant import export_float, load_program, ptq, save_program
from edgekd.targets import quant_spec_for
from edgekd.targets.spec import QuantSpec

SHAPE = (4, 12, 12)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))


def net_of(middle: nn.Module, channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 24, 3, padding=1), middle, nn.Conv2d(channels, 8, 1)).eval()


def converted(
    net: nn.Module, precision: str, images: Tensor, folder: Path, spec: QuantSpec | None = None
) -> tuple[Path, Path]:
    """(file, program)."""
    made = ptq(net, [images], spec or quant_spec_for("tflite")) if precision == "int8" else export_float(net, SHAPE)
    program = save_program(made, folder / "program.pt2")
    asked = {"target": "tflite", "precision": precision, "io_dtype": "float32"}
    request = ExportRequest(program=program, out=folder / "out", **asked)
    request.out.mkdir()
    return request.out / lower(request).path.name, program


def operators(path: Path) -> Counter[str]:
    return Counter(TfliteFile(path).operators())


def outputs(path: Path, program: Path, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(file's, program's) of all images."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter, module = Interpreter(str(path)), load_program(program).module(check_guards=False)
    interpreter.allocate_tensors()
    found, expected = [], []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None].permute(0, 2, 3, 1).numpy())
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
        expected.append(module(image[None]).detach().numpy())
    return np.concatenate(found), np.concatenate(expected)


LARGE = {
    "7x7": {"kernel_size": 7, "padding": 3},
    "stride 2": {"kernel_size": 7, "padding": 3, "stride": 2},
    "no padding, no bias": {"kernel_size": 9, "bias": False},
    "two from each channel": {"kernel_size": 7, "padding": 3, "multiplier": 2},
    "higher than wide": {"kernel_size": (9, 5), "padding": (4, 2), "stride": (1, 2)},
}


def large(options: dict) -> tuple[nn.Module, int]:
    """(net, channels) around one large depthwise convolution."""
    channels = 24 * options.get("multiplier", 1)
    options = {name: value for name, value in options.items() if name != "multiplier"}
    return net_of(nn.Conv2d(24, channels, groups=24, **options), channels), channels


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
def test_large_depthwise_in_float_is_a_sum_of_small_ones(images, tmp_path, options: dict) -> None:
    net, channels = large(options)
    path, program = converted(net, "fp32", images, tmp_path)
    found = operators(path)
    assert found["DEPTHWISE_CONV_2D"] == found["ADD"] + 1 > 1
    assert found["CONV_2D"] == 2
    taps = [shape[1] * shape[2] for shape in weights(path) if shape[0] == 1 and shape[3] == channels]
    assert len(taps) == found["DEPTHWISE_CONV_2D"]
    assert max(taps) <= 25
    ours, theirs = outputs(path, program, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
def test_large_depthwise_in_int8_is_blocks_with_the_programs_codes(images, tmp_path, options: dict) -> None:
    net, channels = large(options)
    path, program = converted(net, "int8", images, tmp_path)
    assert operators(path)["DEPTHWISE_CONV_2D"] == 0
    assert (channels, 12) in [(shape[0], shape[3]) for shape in weights(path)]
    ours, theirs = outputs(path, program, images)
    np.testing.assert_array_equal(ours, theirs)


class OneNumber(nn.Module):
    """Stride and padding as tuples of one number, which the program keeps so and LiteRT's converter refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 1, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, stride=(2,), padding=(3,), groups=24)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_number_stands_for_both_directions(images, tmp_path, precision: str) -> None:
    path, program = converted(net_of(OneNumber(), 24), precision, images, tmp_path)
    assert operators(path)["DEPTHWISE_CONV_2D"] == (3 if precision == "fp32" else 0)
    ours, theirs = outputs(path, program, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 if precision == "fp32" else 0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_convolutions_that_share_their_weight_are_rewritten_each(images, tmp_path, precision: str) -> None:
    twice = nn.Conv2d(24, 24, 7, padding=3, groups=24)
    path, program = converted(net_of(nn.Sequential(twice, nn.ReLU(), twice), 24), precision, images, tmp_path)
    assert operators(path)["DEPTHWISE_CONV_2D"] == (6 if precision == "fp32" else 0)
    ours, theirs = outputs(path, program, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if precision == "fp32" else 0)


def test_a_large_depthwise_layer_that_stays_float_in_int8_is_in_rows(images, tmp_path) -> None:
    net = net_of(nn.Sequential(nn.Hardsigmoid(), nn.Conv2d(24, 24, 7, padding=3, groups=24)), 24)
    spec = quant_spec_for("tflite").model_copy(update={"float_layers": ("1.1",)})
    path, program = converted(net, "int8", images, tmp_path, spec)
    assert operators(path)["DEPTHWISE_CONV_2D"] == 3
    ours, theirs = outputs(path, program, images)
    assert (ours == theirs).mean() > 0.99, "a float sum may fall on the other side of a tie"


def weights(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the stored tensors of four axes."""
    file = TfliteFile(path)
    written = {int(i) for operator in file.graph.operators for i in operator.outputs}
    given = {int(i) for operator in file.graph.operators for i in operator.inputs} - written - {*file.graph.inputs}
    return [shape for shape in map(file.shape, sorted(given)) if len(shape) == 4]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("options", [{"kernel_size": 5, "padding": 2, "groups": 24}, {"kernel_size": 7, "padding": 3}])
def test_other_convolutions_stay_as_they_are(images, tmp_path, precision: str, options: dict) -> None:
    path, _ = converted(net_of(nn.Conv2d(24, 24, **options), 24), precision, images, tmp_path)
    found = operators(path)
    assert found["CONV_2D"] + found["DEPTHWISE_CONV_2D"] == 3
    assert not found["PAD"] + found["ADD"]
    assert found["DEPTHWISE_CONV_2D"] == int("groups" in options)


def test_weights_only_keeps_the_large_kernel(images, tmp_path) -> None:
    path, _ = converted(large(LARGE["7x7"])[0], "w8", images, tmp_path)
    found = operators(path)
    assert found["DEPTHWISE_CONV_2D"] == 1
    assert not found["ADD"]
