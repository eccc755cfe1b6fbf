"""A check passes what is equal and names what is not: parity, agreement, int8, NaN, shape, crash, hang, absence."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd.artifact import Artifact
from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import CheckError, InputError
from edgekd.export.check import CheckReport, check, check_all
from edgekd.export.check_worker import agreement, parity
from edgekd.quant import export_float, load_program, ptq, save_program
from edgekd.runtimes import open_model_file
from edgekd.statistics import wilson_interval
from edgekd.targets.spec import QuantSpec

CHECK_MODULE = importlib.import_module("edgekd.export.check")

PREPROCESSING = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.25,))
CLASSES = 10


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    """A convolution [10, 1, 8, 8] over the whole image: the smallest classifier there is."""
    return np.random.default_rng(0).standard_normal((CLASSES, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def program(weight: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, CLASSES, 8, bias=False), torch.nn.Flatten())
    net[0].weight.data = torch.from_numpy(weight)
    return save_program(export_float(net, (1, 8, 8)), tmp_path_factory.mktemp("program") / "float.pt2")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (48, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def labels(weight: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """What the program itself answers, wrong in the first 12 of 48."""
    normalised = (pixels / 255 - 0.5) / 0.25
    answers = np.einsum("nchw,kchw->nk", normalised, weight).argmax(1)
    answers[:12] = (answers[:12] + 1) % CLASSES
    return answers.astype(np.int64)


def onnx_with(weight: np.ndarray, path: Path, precision: str = "fp32") -> Artifact:
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["convolved"], name="stem"),
        helper.make_node("Flatten", ["convolved"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(weight)])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return open_model_file(path).model_copy(update={"precision": precision})


@pytest.fixture
def checked(program, pixels, labels, tmp_path):
    """Check an artifact on the 48 images."""

    def run(artifact: Artifact, **options) -> CheckReport:
        return check(artifact, program, pixels, labels, PREPROCESSING, log=tmp_path / "logs" / "check.log", **options)

    return run


def test_an_equal_artifact_passes_with_its_accuracy_load_time_and_evidence(checked, weight, tmp_path):
    report = checked(onnx_with(weight, tmp_path / "m.onnx"), parity_images=16)
    assert report.passed, report.failures
    assert (report.n_images, report.n_accuracy_images) == (16, 48)
    assert report.snr_db > 100
    assert report.top1_agreement == 1.0
    assert report.accuracy_top1 == report.reference_accuracy_top1 == 0.75
    assert report.accuracy_ci95 == pytest.approx(wilson_interval(36, 48))
    assert report.executed == "runtime"
    assert report.load_ms > 0
    assert (report.evidence.compute_ops, report.int8_share) == (1, 0.0)
    assert report.size_bytes == (tmp_path / "m.onnx").stat().st_size


def test_the_program_itself_as_an_artifact_is_identical(checked, program):
    report = checked(open_model_file(program))
    assert report.passed
    assert (report.snr_db, report.max_abs_error) == (200.0, 0.0)


def test_the_reference_runs_once_for_all_targets_and_images(checked, program, weight, tmp_path):
    checked(onnx_with(weight, tmp_path / "a.onnx"))
    kept = {path: path.stat().st_mtime_ns for path in (program.parent / "reference").iterdir()}
    checked(onnx_with(weight, tmp_path / "b.onnx"))
    assert kept == {path: path.stat().st_mtime_ns for path in (program.parent / "reference").iterdir()}


def test_weights_that_are_off_fail_on_parity_with_the_number_and_the_bar(checked, weight, tmp_path):
    report = checked(onnx_with(weight * np.float32(1.01), tmp_path / "m.onnx"))
    assert not report.passed
    assert report.snr_db == pytest.approx(40, abs=0.1)
    assert report.failures == ("parity 40.0 dB is under 60 dB (on 48 images)",)


def test_swapped_classes_fail_on_agreement(checked, weight, tmp_path):
    report = checked(onnx_with(weight[::-1].copy(), tmp_path / "m.onnx"))
    assert any("top-1 agreement 0.0" in failure for failure in report.failures)


def test_a_float_artifact_that_says_int8_fails_and_its_float_operators_are_named(checked, weight, tmp_path):
    report = checked(onnx_with(weight, tmp_path / "m.onnx", precision="int8"))
    assert not report.passed
    assert len(report.failures) == 1
    assert report.failures[0].startswith("0.0% of the multiply-adds run in int8, under 95%; in float: Conv ")
    assert report.failures[0].endswith("(ONNX Runtime optimised graph)")
    assert (report.int8_macs_share, report.evidence.macs) == (0.0, 640)


def test_nan_outputs_fail(checked, weight, tmp_path):
    broken = weight.copy()
    broken[3] = np.nan
    report = checked(onnx_with(broken, tmp_path / "m.onnx"))
    assert report.failures == ("its outputs are NaN or infinite for 48 of 48 images",)
    assert report.snr_db is None


def test_another_number_of_classes_fails(checked, weight, tmp_path):
    report = checked(onnx_with(weight[:9], tmp_path / "m.onnx"))
    assert report.failures == ("it gives 9 outputs per image, its program 10",)


def test_a_corrupt_artifact_fails_with_the_runtimes_reason(checked, weight, tmp_path):
    artifact = onnx_with(weight, tmp_path / "m.onnx")
    artifact.path.write_bytes(artifact.path.read_bytes()[:100])
    report = checked(artifact)
    assert (report.passed, report.executed) == (False, "not-executed")
    assert "m.onnx: ONNX Runtime cannot load it" in report.failures[0]


def test_an_artifact_that_vanished_fails_by_name(checked, weight, tmp_path):
    artifact = onnx_with(weight, tmp_path / "m.onnx")
    artifact.path.unlink()
    assert "m.onnx: no such artifact; export it again" in checked(artifact).failures[0]


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        ("import os; print('last words', flush=True); os.abort()", {}, "crashed with SIGABRT .* last words"),
        ("import time; time.sleep(60)", {"timeout_s": 0.5}, "did not finish and was stopped"),
        ("", {}, "exited with status 0 without a result; it printed nothing; see check.log"),
    ],
)
def test_a_runtime_that_dies_is_a_failure_with_its_last_lines(
    checked, weight, tmp_path, monkeypatch, code, options, said
):
    artifact = onnx_with(weight, tmp_path / "m.onnx")
    checked(artifact)  # leaves the reference, so that only the artifact's own process dies
    monkeypatch.setattr(CHECK_MODULE, "WORKER_COMMAND", (sys.executable, "-c", code))
    report = checked(artifact, **options)
    assert not report.passed
    assert re.search(said, report.failures[0]), report.failures


def test_check_all_tells_each_report_as_it_comes(program, pixels, labels, weight, tmp_path):
    told: list[str] = []
    good, bad = onnx_with(weight, tmp_path / "good.onnx"), onnx_with(-weight, tmp_path / "bad.onnx")
    reports = check_all(
        [(bad, program), (good, program)],
        pixels,
        labels,
        PREPROCESSING,
        log_dir=tmp_path,
        on_done=lambda report: told.append(str(report.passed)),
    )
    assert [report.passed for report in reports] == [False, True]
    assert sorted(told) == ["False", "True"]  # in the order they end


def test_a_missing_or_broken_program_is_the_callers_error(pixels, labels, weight, tmp_path):
    artifact = onnx_with(weight, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"none\.pt2: no such program"):
        check(artifact, tmp_path / "none.pt2", pixels, labels, PREPROCESSING, log=tmp_path / "log")
    (tmp_path / "junk.pt2").write_text("junk")
    with pytest.raises(CheckError, match=r"junk\.pt2: the program cannot be run: .*not a torch\.export program"):
        check(artifact, tmp_path / "junk.pt2", pixels, labels, PREPROCESSING, log=tmp_path / "log")


def test_images_and_labels_must_fit_together(program, pixels, labels, weight, tmp_path):
    artifact = onnx_with(weight, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"48 images but labels of shape \[47\]"):
        check(artifact, program, pixels, labels[:47], PREPROCESSING, log=tmp_path / "log")
    with pytest.raises(InputError, match=r"uint8 images \[N, C, H, W\], got float64"):
        check(artifact, program, pixels / 255, labels, PREPROCESSING, log=tmp_path / "log")


def test_an_int8_file_is_compared_with_the_float_program_too(tmp_path, pixels, labels):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, CLASSES, 8), torch.nn.Flatten()).eval()
    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    float_program = save_program(export_float(net, (1, 8, 8)), tmp_path / "float.pt2")
    program = save_program(ptq(net, [images], QuantSpec(scheme="affine")), tmp_path / "int8.pt2")
    artifact = open_model_file(program).model_copy(update={"precision": "int8"})
    report = check(artifact, program, pixels, labels, PREPROCESSING, log=tmp_path / "check.log", baseline=float_program)
    with torch.no_grad():
        wanted = net(images).numpy()
        got = torch.cat([load_program(program).module(check_guards=False)(image[None]) for image in images]).numpy()
    assert report.from_float is not None
    assert report.from_float.snr_db == pytest.approx(parity(wanted, got)["snr_db"], abs=0.1)
    assert report.from_float.program_snr_db == pytest.approx(report.from_float.snr_db, abs=0.1)
    assert report.from_float.top1_agreement == agreement(wanted, got)
    assert report.from_float.p_value == 1.0  # the artifact is the program


def test_accuracy_is_compared_image_by_image_with_the_float_model(program, pixels, labels, weight, tmp_path):
    turned = weight.copy()
    turned[[0, 1]] = turned[[1, 0]]
    report = check(
        onnx_with(turned, tmp_path / "m.onnx"),
        program,
        pixels,
        labels,
        PREPROCESSING,
        log=tmp_path / "check.log",
        baseline=program,
    )
    assert report.paired.baseline_top1 == 0.75
    assert report.paired.lost + report.paired.gained > 0
    assert report.paired.loss_points == pytest.approx(100 * (report.paired.lost - report.paired.gained) / 48)
    assert report.accuracy_top1 == pytest.approx(0.75 - report.paired.loss_points / 100)


def test_without_labels_only_parity_is_judged(program, pixels, weight, tmp_path):
    artifact = onnx_with(weight, tmp_path / "m.onnx")
    report = check(artifact, program, pixels, None, PREPROCESSING, log=tmp_path / "check.log")
    assert report.passed
    assert (report.accuracy_top1, report.n_accuracy_images) == (None, 0)


def test_an_int8_artifact_is_compared_with_its_program_in_float64(tmp_path, pixels, labels):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, CLASSES, 8), torch.nn.Flatten()
    )
    images = PREPROCESSING.normalise(torch.from_numpy(pixels))
    program = save_program(ptq(net.eval(), [images], QuantSpec(scheme="affine")), tmp_path / "int8.pt2")
    artifact = open_model_file(program).model_copy(update={"precision": "int8"})
    report = check(artifact, program, pixels, labels, PREPROCESSING, log=tmp_path / "check.log")
    (kept,) = (tmp_path / "reference").glob("*.npz")
    arrays = np.load(kept)
    name = next(key for key in arrays.files if key.startswith("output:"))
    exact, float32 = arrays[name], arrays[name.replace("output:", "float32:")]
    assert 0 < np.abs(exact - float32).max() < 1e-3 * np.abs(exact).max() or np.array_equal(exact, float32)
    assert report.snr_db == pytest.approx(report.float32_snr_db, abs=0.01), "the program itself ran in float32"
