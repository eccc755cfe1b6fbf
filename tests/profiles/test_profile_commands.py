"""`edgekd profiles` and `edgekd estimate`: tables for people, one JSON document for machines, talk on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgekd.commands import estimate, profiles
from edgekd.errors import InputError
from edgekd.files import write_text
from edgekd.profile import load_profile, profile_names
from edgekd.students.spaces import STAGE_SPACES, Task

app = typer.Typer()
app.add_typer(profiles.app, name="profiles")
app.command("estimate")(estimate.estimate)


def stdout(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*words: str) -> InputError:
    result = CliRunner().invoke(app, list(words))
    assert isinstance(result.exception, InputError), result.output
    assert result.stdout == ""
    return result.exception


def test_list_names_every_profile_with_its_precision_and_reason() -> None:
    listed = json.loads(stdout("profiles", "list", "--json"))
    assert [line["name"] for line in listed] == profile_names()
    nano = next(line for line in listed if line["name"] == "jetson-nano")
    assert (nano["precision"], nano["scheme"]) == ("fp16", None)
    assert "FP16, not INT8" in nano["why"]
    assert "jetson-nano" in stdout("profiles", "list")


def test_show_is_the_whole_profile() -> None:
    shown = json.loads(stdout("profiles", "show", "pixel-8", "--json"))
    assert shown == load_profile("pixel-8").model_dump(mode="json")
    text = stdout("profiles", "show", "pixel-8")
    assert "peak assumed at 10" in text
    assert "budgets p90 8 ms" in text


def test_check_accepts_a_file_of_ones_own_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    shipped = Path(__file__).resolve().parents[2] / "profiles" / "jetson-nano.toml"
    text = shipped.read_text(encoding="utf-8")
    good = write_text(tmp_path / "good.toml", text.replace('"jetson-nano"', '"good"'))
    assert "valid profile 'good' (gpu, cpu; 3 runtimes)" in stdout("profiles", "check", str(good))
    bad = write_text(tmp_path / "bad.toml", text.replace("dram_gb_per_s", "dram_gb_s", 1))
    assert "did you mean 'dram_gb_per_s'?" in str(refusal("profiles", "check", str(bad)))


def test_estimate_takes_unit_and_precision_from_the_profile() -> None:
    facts = json.loads(stdout("estimate", "torchvision:mobilenet_v2", "--profile", "jetson-nano", "--json"))
    assert (facts["unit"], facts["precision"], facts["runtime"]) == ("gpu", "fp16", "tensorrt")
    assert facts["latency"]["kind"] == "predicted"
    assert facts["latency"]["lo_ms"] < facts["latency"]["p50_ms"] < facts["latency"]["hi_ms"]
    assert facts["macs"] == pytest.approx(300.8e6, rel=0.01)


def test_estimate_moves_to_a_unit_that_takes_the_precision() -> None:
    facts = json.loads(stdout("estimate", "torchvision:resnet18", "-p", "jetson-nano", "--precision", "int8", "--json"))
    assert (facts["unit"], facts["runtime"]) == ("cpu", "onnxruntime")


def test_estimate_reads_the_student_of_a_run_directory(tmp_path: Path) -> None:
    spec = next(STAGE_SPACES["inverted-residual"](Task((28,), 1, 10)).specs())
    write_text(tmp_path / "student.json", spec.model_dump_json())
    facts = json.loads(stdout("estimate", str(tmp_path), "--profile", "raspberry-pi-5", "--json"))
    assert facts["input_shape"] == [1, 1, 28, 28]
    text = stdout("estimate", str(tmp_path), "--profile", "raspberry-pi-5")
    assert "latency p50, ms" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["torchvision:resnet81", "-p", "jetson-nano"], "torchvision has no 'resnet81'; did you mean 'resnet18'"),
        (["torchvision:resnet18", "-p", "jetson-nanno"], "no profile 'jetson-nanno'; did you mean 'jetson-nano'"),
        (["torchvision:resnet18", "-p", "jetson-nano", "--unit", "npu"], "no compute unit 'npu'; it has: gpu, cpu"),
        (["torchvision:resnet18", "-p", "jetson-nano", "--precision", "int4"], "no precision 'int4'"),
        (["model.tflite", "-p", "jetson-nano"], "model.tflite: not a network that can be traced"),
    ],
)
def test_estimate_refuses_in_one_line(words: list[str], message: str) -> None:
    assert message in str(refusal("estimate", *words))


def test_a_directory_without_a_student_says_so(tmp_path: Path) -> None:
    assert "no student.json in this directory" in str(refusal("estimate", str(tmp_path), "-p", "jetson-nano"))
    write_text(tmp_path / "student.json", "{}")
    assert "not a student (image_size: Field required)" in str(refusal("estimate", str(tmp_path), "-p", "jetson-nano"))
