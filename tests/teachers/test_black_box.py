"""Claims about exported files as teachers."""

from __future__ import annotations

import importlib.util
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.data import Dataset, Preprocessing, TensorSplit
from edgekd.data.encoded import decode
from edgekd.errors import InputError, MissingExtraError
from edgekd.teachers import load_teacher
from edgekd.teachers.black_box import input_layout, open_black_box
from edgekd.teachers.pt2 import is_plain_expression, load_program


class Plain(nn.Module):
    """One convolution, average pooling, one linear layer: the same in every format."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv(x).mean((2, 3)))
        return logits


def write_onnx(path: Path, *, batch: int | str, softmax: bool = False, classes: int = 10) -> Path:
    model = Plain(classes)
    constants = [numpy_helper.from_array(v.detach().numpy(), k) for k, v in model.named_parameters()]
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["g"], transB=1),
        helper.make_node("Softmax" if softmax else "Identity", ["g"], ["logits"]),
    ]
    shape = [batch, 1, 28, 28]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def write_program(path: Path, *, batch: int | None = 1) -> Path:
    example = torch.zeros(batch or 2, 1, 28, 28)
    shapes = None if batch else ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(Plain().eval(), (example,), dynamic_shapes=shapes), path)
    return path


def _images(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def _expected(images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = Plain()(images)
    return out


@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_onnx_files_of_any_batch_give_the_models_logits(
    tmp_path: Path, tiny_dataset: Dataset, batch: int | str
) -> None:
    path = write_onnx(tmp_path / "m.onnx", batch=batch)
    teacher = load_teacher(str(path), dataset=tiny_dataset)
    assert (teacher.black_box, teacher.num_classes, teacher.facts["outputs"]) == (True, 10, "logits")
    assert teacher.preprocessing == tiny_dataset.preprocessing
    torch.testing.assert_close(teacher.module(_images()), _expected(_images()), atol=1e-5, rtol=1e-4)


def test_probabilities_become_logits_up_to_a_constant(tmp_path: Path, tiny_dataset: Dataset) -> None:
    teacher = load_teacher(str(write_onnx(tmp_path / "m.onnx", batch="n", softmax=True)), dataset=tiny_dataset)
    assert teacher.facts["outputs"] == "probabilities"
    expected = _expected(_images()).log_softmax(1)
    torch.testing.assert_close(teacher.module(_images()), expected, atol=1e-4, rtol=1e-4)


def test_a_black_box_is_adapted_like_any_teacher_and_has_no_training_mode(
    tmp_path: Path, tiny_dataset: Dataset
) -> None:
    teacher = load_teacher(str(write_onnx(tmp_path / "m.onnx", batch=1)), dataset=tiny_dataset)
    student = Preprocessing(image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    adapted = teacher.adapt(student)
    assert adapted.train()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not teacher.module.training


@pytest.mark.parametrize("batch", [1, None])
def test_exported_programs_give_the_models_logits(tmp_path: Path, tiny_dataset: Dataset, batch: int | None) -> None:
    path = write_program(tmp_path / "m.pt2", batch=batch)
    teacher = load_teacher(str(path), dataset=tiny_dataset)
    assert teacher.black_box
    torch.testing.assert_close(teacher.module(_images()), _expected(_images()), atol=1e-5, rtol=1e-4)


def test_a_run_directory_teaches_with_its_float_program(tmp_path: Path, tiny_dataset: Dataset) -> None:
    (tmp_path / "programs").mkdir()
    write_program(tmp_path / "programs" / "float.pt2")
    assert load_teacher(str(tmp_path), dataset=tiny_dataset).module(_images(2)).shape == (2, 10)


@pytest.mark.runtime
def test_openvino_ir_gives_the_models_logits_and_needs_its_bin(tmp_path: Path, tiny_dataset: Dataset) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    model = openvino.convert_model(str(write_onnx(tmp_path / "m.onnx", batch=1)))
    openvino.save_model(model, str(tmp_path / "m.xml"), compress_to_fp16=False)
    teacher = load_teacher(str(tmp_path / "m.xml"), dataset=tiny_dataset)
    # OpenVINO may compute in bf16 where the CPU has it.
    torch.testing.assert_close(teacher.module(_images()), _expected(_images()), atol=2e-2, rtol=2e-2)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(InputError, match=r"its weights m\.bin are missing"):
        load_teacher(str(tmp_path / "m.xml"), dataset=tiny_dataset)


def _some_cifar(shared: Path) -> TensorSplit:
    with np.load(shared / "data" / "images" / "cifar10-jpegq75.npz", allow_pickle=False) as arrays:
        blob, offsets, labels = (arrays[f"test_{what}"] for what in ("jpeg", "offsets", "labels"))
    chosen = range(0, 10_000, 100)  # the file is sorted by class
    images = [decode(bytes(blob[offsets[i] : offsets[i + 1]]), image_size=32, channels=3) for i in chosen]
    return TensorSplit(torch.from_numpy(np.stack(images)), torch.from_numpy(labels[list(chosen)].astype(np.int64)))


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["pretrainedResnet.tflite", "pretrainedResnet_quant.tflite"])
def test_tflite_files_with_softmax_float_and_int8_know_real_images(tmp_path: Path, shared: Path, name: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")
    with tarfile.open(shared / "data" / "models" / "tflite-mlperf-tiny.tar") as archive:
        file = archive.extractfile(f"mlt/{name}")
        assert file is not None
        (tmp_path / "m.tflite").write_bytes(file.read())
    images = _some_cifar(shared)
    # MLPerf Tiny's network takes pixels from 0 to 255 as they are.
    own = Preprocessing(image_size=32, channels=3, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    data = Dataset("cifar", tuple("abcdefghij"), images, images, images, own, "0")
    teacher = load_teacher(str(tmp_path / "m.tflite"), dataset=data)
    assert teacher.facts == {"file": "m.tflite", "layout": "NHWC", "outputs": "probabilities"}
    logits = teacher.module(own.normalise(images.pixels))
    assert (logits.argmax(1) == images.labels).float().mean() > 0.65
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(100), atol=0.05, rtol=0)


@pytest.mark.parametrize(("suffix", "module"), [(".tflite", "ai_edge_litert"), (".xml", "openvino")])
def test_a_missing_runtime_names_its_extra(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else real(name, *a))
    (tmp_path / f"m{suffix}").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"not installed.*pip install 'edgekd\["):
        load_teacher(str(tmp_path / f"m{suffix}"), dataset=tiny_dataset)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_files_that_are_not_what_their_suffix_says_are_refused(
    tmp_path: Path, tiny_dataset: Dataset, suffix: str
) -> None:
    (tmp_path / f"m{suffix}").write_bytes(b"hello")
    with pytest.raises(InputError, match=f"m{suffix}: .*(cannot be loaded|not an exported program)"):
        load_teacher(str(tmp_path / f"m{suffix}"), dataset=tiny_dataset)
    with pytest.raises(InputError, match="no such file"):
        open_black_box(tmp_path / f"none{suffix}", channels=1, image_size=28)


def test_other_class_counts_are_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    path = write_onnx(tmp_path / "m.onnx", batch=1, classes=4)
    with pytest.raises(InputError, match="the teacher has 4 classes, the data have 10"):
        load_teacher(str(path), dataset=tiny_dataset)


@pytest.mark.parametrize("shape", [(1, 10), (1, 5, 28, 28), (1, 1, 28, 30), (1, 16, 1, 28, 28)])
def test_inputs_that_are_no_square_image_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected one square image input"):
        input_layout(shape, where="x")


def _rewritten(path: Path, out: Path, *, change: Any = None, add: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        root = source.namelist()[0].partition("/")[0]
        for name in source.namelist():
            data = source.read(name)
            if change is not None and name.endswith("models/model.json"):
                data = json.dumps(change(json.loads(data))).encode()
            target.writestr(name, data)
        for name, data in (add or {}).items():
            target.writestr(f"{root}/{name}", data)
    return out


def test_an_archive_that_could_run_code_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("loaded")

    good = write_program(tmp_path / "good.pt2")
    monkeypatch.setattr(torch.export, "load", never)

    def call_load(graph: Any) -> Any:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"
        return graph

    def evaluate(graph: Any) -> Any:
        return {**graph, "x": {"expr_str": "exec('1')"}}

    payload = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
    bad: dict[str, dict[str, Any]] = {
        "a call of 'torch.hub.load'": {"change": call_load},
        "expression": {"change": evaluate},
        "opaque": {"add": {"data/constants/model2_constants_config.json": json.dumps(payload).encode()}},
        r"data/aotinductor/x\.so": {"add": {"data/aotinductor/x.so": b"x"}},
        r"pickled 'data/weights/model\.pt'": {"add": {"data/weights/model.pt": b"x"}},
        "two entries of one name": {"add": {"Models/model.json": b"{}"}},
    }
    for i, (match, how) in enumerate(bad.items()):
        with pytest.raises(InputError, match="pickled 'w'" if match == "opaque" else match):
            load_program(_rewritten(good, tmp_path / f"{i}.pt2", **how))


@pytest.mark.parametrize(
    "text",
    ["exec(chr(105))", "().__class__", "s0.foo", "open('x')", "(exec)(s0)", "[s0]", "Symbol('a b')", "__import__"],
)
def test_shapes_that_call_something_are_not_plain(text: str) -> None:
    assert not is_plain_expression(text)


@pytest.mark.parametrize("text", ["s0", "2*s0 + 1", "Max(1, s0)", "torch.utils._sympy.functions.FloorDiv(s0, 2)"])
def test_shapes_as_torch_writes_them_are_plain(text: str) -> None:
    assert is_plain_expression(text)


def test_float16_onnx_inputs_are_fed_as_such(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((28 * 28, 3), np.float16), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])],
        [weight],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx")
    )
    box, facts = open_black_box(tmp_path / "m.onnx", channels=1, image_size=28)
    assert facts.num_classes == 3
    assert box(torch.ones(1, 1, 28, 28)).tolist() == [[784.0] * 3]
