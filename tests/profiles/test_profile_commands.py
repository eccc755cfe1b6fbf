"""`edgekd profiles` and `edgekd estimate`: tables for people, one JSON document for machines, talk on stderr."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
import torch
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
    result = CliRunner().invoke(app, ["profiles", "check", str(bad), str(good)])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith(f"error: {bad}: unknown key 'units[gpu].dram_gb_s'; did you mean")
    assert result.stdout.startswith(f"{good}: valid")


def test_check_as_json_lists_every_mistake(tmp_path: Path) -> None:
    bad = write_text(tmp_path / "bad.toml", 'extends = "pixel-8"\nname = "x"\nram_mb = 1\ntransport = "usb"\n')
    result = CliRunner().invoke(app, ["profiles", "check", str(bad), "--json"])
    document = json.loads(result.stdout)
    assert (result.exit_code, document["valid"], len(document["mistakes"])) == (2, False, 3)
    assert json.loads(stdout("profiles", "check", "pixel-8", "--json"))["mistakes"] == []


def test_list_groups_by_kind_and_filters_by_words_and_kind() -> None:
    text = stdout("profiles", "list")
    assert text.index("raspberry-pi-5") < text.index("\nandroid") < text.index("pixel-6") < text.index("\niphone")
    assert "25w* 15w 7w" in text
    names = [line["name"] for line in json.loads(stdout("profiles", "list", "Orin", "nano", "--json"))]
    assert names == ["jetson-orin-nano", "jetson-orin-nano-4gb"]
    kinds = {line["kind"] for line in json.loads(stdout("profiles", "list", "--kind", "iphone", "--json"))}
    assert kinds == {"iphone"}
    assert "did you mean 'android'?" in str(refusal("profiles", "list", "--kind", "andriod"))


def test_an_experiment_is_marked_once() -> None:
    name = "cortex-m7-stm32h743"
    assert stdout("profiles", "show", name).count("(experiment)") == 1
    assert stdout("profiles", "list", name).count("(experiment)") == 1


def test_show_knows_power_modes_and_where_each_number_is_from() -> None:
    text = stdout("profiles", "show", "jetson-orin-nano@15w")
    assert "power mode 15w 15 W: 6 cores at 1.51 GHz, GPU at 625 MHz (in use)" in text
    assert "up to 15 W" in text
    facts = json.loads(stdout("profiles", "show", "jetson-orin-nano@15w", "--numbers", "--json"))
    bandwidth = next(fact for fact in facts if (fact["table"], fact["key"]) == ("units[gpu]", "dram_gb_per_s"))
    assert (bandwidth["value"], bandwidth["unit"], bandwidth["confidence"]) == (68.0, "GB/s", "derived")


def test_the_schema_accepts_what_ships_and_refuses_unknown_keys() -> None:
    schema = json.loads(stdout("profiles", "schema"))
    validator = jsonschema.Draft202012Validator(schema)
    root = Path(__file__).resolve().parents[2]
    for file in sorted((root / "profiles").rglob("*.toml")):
        assert not list(validator.iter_errors(tomllib.loads(file.read_text(encoding="utf-8")))), file
    for file in sorted((root / "tests" / "bad_profiles" / "keys").glob("*.toml")):
        assert list(validator.iter_errors(tomllib.loads(file.read_text(encoding="utf-8")))), file


def test_a_power_mode_is_chosen_the_same_way_in_estimate() -> None:
    words = ("estimate", "torchvision:squeezenet1_1", "--image-size", "64", "--json", "-p")
    whole, half = (json.loads(stdout(*words, f"jetson-orin-nano{mode}")) for mode in ("", "@15w"))
    assert (whole["profile"], half["profile"]) == ("jetson-orin-nano", "jetson-orin-nano@15w")
    assert half["latency"]["p50_ms"] > whole["latency"]["p50_ms"]


def test_estimate_predicts_from_rows_where_nobody_publishes_a_peak() -> None:
    words = ("torchvision:squeezenet1_1", "-p", "galaxy-s22", "--unit", "npu", "--precision", "int8", "--json")
    latency = json.loads(stdout("estimate", *words))["latency"]
    assert latency["provenance"].startswith("10 networks measured in TFLite (QNN delegate), w8a8, on QCS8450 (Proxy)")
    assert 0 < latency["lo_ms"] < latency["p50_ms"] < latency["hi_ms"]


def test_estimate_takes_unit_and_precision_from_the_profile() -> None:
    facts = json.loads(stdout("estimate", "torchvision:mobilenet_v2", "--profile", "jetson-nano", "--json"))
    assert (facts["unit"], facts["precision"], facts["runtime"]) == ("gpu", "fp16", "tensorrt")
    assert facts["latency"]["kind"] == "predicted"
    assert facts["latency"]["lo_ms"] < facts["latency"]["p50_ms"] < facts["latency"]["hi_ms"]
    assert facts["macs"] == pytest.approx(300.8e6, rel=0.01)


def test_estimate_moves_to_a_unit_that_takes_the_precision() -> None:
    facts = json.loads(stdout("estimate", "torchvision:resnet18", "-p", "jetson-nano", "--precision", "int8", "--json"))
    assert (facts["unit"], facts["runtime"]) == ("cpu", "onnxruntime")


def test_estimate_refuses_a_precision_that_no_runtime_there_takes() -> None:
    error = refusal("estimate", "torchvision:resnet18", "-p", "galaxy-s21", "--unit", "npu", "--precision", "fp16")
    assert "no runtime there takes fp16" in str(error)
    assert "on npu takes int8" in str(error)


def test_estimate_of_a_batch_works_more_for_the_same_weights() -> None:
    words = ("estimate", "torchvision:squeezenet1_1", "--image-size", "64", "--json", "-p", "jetson-nano")
    one, four = json.loads(stdout(*words)), json.loads(stdout(*words, "--batch", "4"))
    assert four["input_shape"] == [4, 3, 64, 64]
    assert four["macs"] == 4 * one["macs"]
    assert four["parameters"] == one["parameters"]
    assert four["peak_activation_elements"] == 4 * one["peak_activation_elements"]
    assert four["peak_memory_mib"] > one["peak_memory_mib"]
    assert one["latency"]["p50_ms"] < four["latency"]["p50_ms"] < 4 * one["latency"]["p50_ms"], "launches are shared"
    assert four["latency_per_image_ms"] == four["latency"]["p50_ms"] / 4
    assert "all at batch 1" in four["latency"]["provenance"]


def test_estimate_refuses_another_batch_for_a_file() -> None:
    assert "a file has the batch" in str(refusal("estimate", "m.onnx", "-p", "jetson-nano", "--batch", "4"))


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
        (["model.tflite", "-p", "jetson-nano"], "model.tflite: no such file"),
    ],
)
def test_estimate_refuses_in_one_line(words: list[str], message: str) -> None:
    assert message in str(refusal("estimate", *words))


def test_a_directory_without_a_student_says_so(tmp_path: Path) -> None:
    assert "no student.json in this directory" in str(refusal("estimate", str(tmp_path), "-p", "jetson-nano"))
    write_text(tmp_path / "student.json", "{}")
    assert "not a student (image_size: Field required)" in str(refusal("estimate", str(tmp_path), "-p", "jetson-nano"))


def test_estimate_names_the_operators_that_leave_the_unit_with_the_profiles_reason() -> None:
    swin = ("estimate", "torchvision:swin_t", "--profile", "iphone-12")
    (found,) = json.loads(stdout(*swin, "--json"))["operators_elsewhere"]
    assert (found["operator"], found["kinds"], found["to"]) == ("gather", ["roll"], "cpu")
    text = stdout(*swin)
    assert "warning: gather (of roll) leaves the npu for the cpu in coreml 9 (known not to run" in text
    assert "the figures are as if all of it ran on the npu" in text


def test_estimate_says_that_a_file_with_a_refused_operator_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "mobile.onnx"
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Hardswish())
    torch.onnx.export(module.eval(), (torch.zeros(1, 3, 16, 16),), str(file), opset_version=17, dynamo=False)
    asked = ("estimate", str(file), "--profile")
    text = stdout(*asked, "jetson-nano")
    assert "warning: HardSwish is refused by tensorrt 8.2.1 on the gpu (operators of ONNX opsets above 13" in text
    assert "as it is the network does not run there" in text
    assert json.loads(stdout(*asked, "jetson-orin-nano", "--json"))["warnings"] == []


def test_a_runtime_without_fallbacks_gives_no_warning() -> None:
    facts = json.loads(stdout("estimate", "torchvision:swin_t", "--profile", "raspberry-pi-5", "--json"))
    assert (facts["warnings"], facts["operators_elsewhere"]) == ([], [])
