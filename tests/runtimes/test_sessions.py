"""Every runtime gives the program's outputs, and says what it really runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import InputError, MissingExtraError
from edgekd.latency import trace_cost
from edgekd.runtimes import OpReport, logits, op_report, open_session
from edgekd.runtimes.session import ComputeOp

VENDOR = pytest.mark.runtime
RUNTIMES = [
    "null",
    "onnxruntime",
    pytest.param("tflite", marks=VENDOR),
    pytest.param("openvino", marks=VENDOR),
    pytest.param("coreml", marks=VENDOR),
    pytest.param("tensorrt", marks=VENDOR),
]
EXECUTED = {"coreml": "runtime" if sys.platform == "darwin" else "interpreted", "tensorrt": "stand-in"}


def snr_db(expected: np.ndarray, got: np.ndarray) -> float:
    noise = float(((expected - got) ** 2).sum())
    return 200.0 if noise == 0 else 10 * float(np.log10((expected**2).sum() / noise))


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_float_artifact_gives_the_programs_logits_to_float_accuracy(exported, images, reference, target):
    session = open_session(exported(target, "fp32"))
    assert snr_db(reference("float"), logits(session, images)) > 90
    assert session.executed == EXECUTED.get(target, "runtime")
    assert bool(session.note) == (session.executed != "runtime")
    session.close()


@pytest.mark.parametrize("target", RUNTIMES)
def test_an_int8_artifact_is_int8_in_every_convolution_and_keeps_parity(exported, images, reference, target):
    artifact = exported(target, "int8")
    report = op_report(artifact)
    assert (report.convs, report.int8_convs) == (4, 4), report
    assert report.float_convs == ()
    stem = "symmetric" if target == "tensorrt" else "affine"
    assert snr_db(reference(stem), logits(open_session(artifact), images)) > 30


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_float_artifact_reports_no_int8_and_names_its_float_convolutions(exported, target):
    report = op_report(exported(target, "fp32"))
    assert report.compute_ops == 5
    assert report.int8_compute_ops == 0
    assert report.int8_share == 0.0
    assert len(report.float_convs) == 4
    assert not report.fp16_weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", ["onnxruntime", *(pytest.param(t, marks=VENDOR) for t in ("tflite", "openvino", "coreml"))]
)
def test_an_fp16_artifact_stores_fp16_and_stays_above_50_db(exported, images, reference, target):
    artifact = exported(target, "fp16")
    assert op_report(artifact).fp16_weights
    assert 50 < snr_db(reference("float"), logits(open_session(artifact), images)) < 120


@VENDOR
def test_litert_int8_input_is_quantised_in_feed_and_its_output_dequantised_in_read(exported, images):
    session = open_session(exported("tflite", "int8"))
    fed = session.feed(images[:1])
    assert (fed.dtype, fed.shape) == (np.int8, (1, 28, 28, 1))
    raw = session.invoke(fed)
    assert [values.dtype for values in raw] == [np.int8]
    assert session.read(raw).dtype == np.float32


@pytest.mark.parametrize(
    "target", ["null", "onnxruntime", *(pytest.param(t, marks=VENDOR) for t in ("tflite", "openvino"))]
)
def test_what_was_fed_once_can_be_invoked_again_with_the_same_result(exported, images, target):
    """An input is copied into the runtime once, so another in between, or another in the same array, must be seen."""
    session = open_session(exported(target, "fp32"))
    first, other = session.feed(images[:1]), session.feed(images[1:2])
    once, twice, different = (session.read(session.invoke(fed)) for fed in (first, first, other))
    assert np.array_equal(once, twice)
    assert not np.array_equal(once, different)
    assert np.array_equal(once, session.read(session.invoke(first)))
    changing = images[:1].copy()
    assert np.array_equal(once, session.read(session.invoke(session.feed(changing))))
    changing[:] = images[1:2]
    assert np.array_equal(different, session.read(session.invoke(session.feed(changing))))


@pytest.mark.parametrize("target", ["null", "onnxruntime"])
def test_images_of_another_size_are_refused_with_the_size_it_takes(exported, target):
    session = open_session(exported(target, "fp32"))
    with pytest.raises(InputError, match=r"images of shape \[1, 1, 32, 32\]; it takes \[1, 1, 28, 28\]"):
        session.feed(np.zeros((1, 1, 32, 32), np.float32))


@VENDOR
def test_openvino_runs_float_in_float32_unless_told_otherwise(exported, images, reference):
    artifact = exported("openvino", "fp32")
    halved = logits(open_session(artifact, options={"inference_precision": "bf16"}), images)
    exact = logits(open_session(artifact), images)
    assert snr_db(reference("float"), exact) >= snr_db(reference("float"), halved)
    with pytest.raises(InputError, match=r"unknown inference_precision 'f31'; did you mean"):
        open_session(artifact, options={"inference_precision": "f31"})


def test_an_unknown_option_is_refused_with_the_nearest_name(exported):
    with pytest.raises(InputError, match=r"target 'onnxruntime': unknown option 'optimize'; did you mean 'optimise'\?"):
        open_session(exported("onnxruntime", "fp32"), options={"optimize": True})


def test_zero_threads_are_refused(exported):
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        open_session(exported("onnxruntime", "fp32"), threads=0)


def artifact_at(path: Path, target: str) -> Artifact:
    image = TensorSpec(name="image", shape=(1, 1, 28, 28), dtype="float32", layout="NCHW")
    out = TensorSpec(name="logits", shape=(1, 10), dtype="float32", layout="NC")
    return Artifact(
        target=target, precision="fp32", path=path, inputs=(image,), outputs=(out,), size_bytes=4, sha256=""
    )


def test_an_engine_without_its_onnx_says_why_it_cannot_run_here(tmp_path):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(InputError, match="runs only on the GPU it was built for"):
        open_session(artifact_at(engine, "tensorrt"))


def test_an_artifact_that_vanished_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.onnx: no such artifact; export it again"):
        open_session(artifact_at(tmp_path / "gone.onnx", "onnxruntime"))


def test_a_target_without_a_runtime_is_refused(tmp_path):
    with pytest.raises(InputError, match="no runtime for target 'openvin'; did you mean 'openvino'"):
        op_report(artifact_at(tmp_path, "openvin"))


def test_a_runtime_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.runtimes.opening.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs openvino \(not installed\); pip install 'edgekd\[openvino\]'"):
        open_session(artifact_at(tmp_path, "openvino"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("target", RUNTIMES)
def test_every_runtime_counts_the_multiply_adds_that_the_network_has(exported, multiply_adds, target, precision):
    report = op_report(exported(target, precision))
    assert report.macs == multiply_adds
    assert report.int8_macs_share == pytest.approx(1.0 if precision == "int8" else 0.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNTIMES)
def test_mobilenet_v3s_multiply_adds_are_counted_alike_everywhere(tmp_path, target):
    from torchvision.models import mobilenet_v3_small

    from edgekd.export import ExportRequest, export_one
    from edgekd.quant import export_float, save_program
    from edgekd.runtimes import open_model_file

    net = mobilenet_v3_small(num_classes=10).eval()
    program = save_program(export_float(net, (3, 64, 64)), tmp_path / "float.pt2")
    request = ExportRequest(target=target, precision="fp32", program=program, out=tmp_path / target)
    artifact = open_model_file(program) if target == "null" else export_one(request, log=tmp_path / "log")
    assert op_report(artifact).macs == pytest.approx(trace_cost(net, (1, 3, 64, 64)).macs, rel=0.01)


def test_float_operators_are_named_with_the_most_multiply_adds_first():
    compute = [
        ComputeOp(name=name, kind="conv", op_type="Conv", int8=name == "b", macs=macs)
        for name, macs in (("a", 5), ("b", 80), ("c", 15))
    ]
    report = OpReport.of({"Conv": 3}, compute, source="a graph")
    assert report.float_convs == ("Conv c", "Conv a")
    assert (report.macs, report.int8_macs_share) == (100, 0.8)


@VENDOR
def test_litert_says_what_its_delegate_takes_and_what_only_moves_data(exported):
    detail = op_report(exported("tflite", "int8")).detail
    assert detail["undelegated"] == {}
    assert detail["delegated_ops"] > 0
    assert "TRANSPOSE" not in detail["layout_ops"]


@VENDOR
def test_openvino_says_what_it_would_run_by_default_and_with_which_kernels(exported):
    quantised, plain = (op_report(exported("openvino", name)).detail for name in ("int8", "fp32"))
    assert set(plain["precisions"]) == {"Convolution f32", "FullyConnected f32"}
    assert sum(plain["default_precisions"].values()) == sum(plain["primitives"].values()) == 5
    assert not any("f32" in key for key in quantised["default_precisions"] if key.startswith("Conv"))


def test_int8_share_of_a_graph_without_compute_is_zero():
    assert OpReport(ops={}, compute_ops=0, int8_compute_ops=0).int8_share == 0.0


def test_importing_the_room_loads_no_runtime():
    heavy = ("torch", "onnxruntime", "openvino", "coreml" + "tools", "ai_edge_litert")
    code = f"import sys, edgekd.runtimes; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
