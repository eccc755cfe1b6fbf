"""The command line: starts without torch, errors in one line, exit codes 0, 1, 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
    "coremltools",
    "ai_edge_litert",
    "litert_torch",
    "numpy",
    "scipy",
)


def edgekd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The real command in its own process; COLUMNS keeps tables from folding."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["distill", "--help"], ["profiles", "list"]])
def test_light_commands_load_neither_torch_nor_a_vendor_package(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom edgekd.cli import run\n"
        f"code = run({arguments!r})\n"
        f"loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print('LOADED', loaded, file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "timm:resnet18", "--target", "tflite", "--target=openvino"],
        ["plan", "-p", "jetson-nano", "--profile", "pixel-8"],
        ["bench", "timing", "--part", "all", "--part", "all"],
    ],
)
def test_an_option_of_one_value_given_twice_is_refused(arguments: list[str]) -> None:
    done = edgekd(*arguments)
    assert done.returncode == 2
    assert "given twice" in done.stderr
    assert "commas" in done.stderr


def test_options_that_collect_values_may_be_repeated() -> None:
    done = edgekd("profiles", "list", "--json", "--json")
    assert done.returncode == 0, done.stderr
    done = edgekd("advise", "--teacher", "edgekd:nothing", "--also", "edgekd:resnet20", "--also", "edgekd:resnet32")
    assert "given twice" not in done.stderr


def test_importing_edgekd_loads_no_torch() -> None:
    code = "import sys, edgekd; edgekd.load_profile('jetson-nano'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_every_command_has_help_with_an_example() -> None:
    for name in ("distill", "plan", "profile", "export", "estimate", "verify", "doctor"):
        done = edgekd(name, "--help")
        assert done.returncode == 0
        assert f"edgekd {name}" in done.stdout, name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["distill", "--profile", "jetson-nanno"], "did you mean 'jetson-nano'"),
        (["plan", "--profile", "jetson-nano", "--precision", "int8"], "int8 is not legal in tensorrt"),
        (["plan", "--profile", "jetson-nano", "--precision", "int4"], "--precision: 'int4'"),
        (["plan", "--profile", "jetson-nano", "--latency-ms", "-3"], "--latency-ms: -3.0"),
        (["plan", "--profile", "jetson-nano", "--latency-ms", "0"], "--latency-ms: 0.0"),
        (["plan", "--profile", "jetson-nano", "--latency-ms", "1e9"], "--latency-ms: 1000000000.0"),
        (["plan", "--profile", "jetson-nano", "--latency-ms", "nan"], "--latency-ms: nan"),
        (["plan", "--profile", "jetson-nano", "--memory-mib", "0"], "--memory-mib: 0.0"),
        (["plan", "--profile", "jetson-nano", "--size-mib", "-1"], "--size-mib: -1.0"),
        (["plan", "--profile", "jetson-nano", "--energy-mj", "1e12"], "--energy-mj: 1000000000000.0"),
        (["plan", "--profile", "jetson-nano", "--macs-fraction", "2"], "--macs-fraction: 2.0"),
        (["plan", "--profile", "jetson-nano", "--target", "tflit"], "did you mean 'tflite'"),
        (["plan", "--profile", "jetson-nano", "--data", "/no/such/folder"], "/no/such/folder"),
        (["plan", "--profile", "jetson-nano", "--teacher", "timm:resnet1888"], "resnet18"),
        (["verify", "/no/such/bundle.zip"], "/no/such/bundle.zip"),
        (["export", "/no/such/run"], "/no/such/run"),
        (["estimate", "torchvision:resnet1888", "--profile", "jetson-nano"], "resnet18"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_2(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = edgekd(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists(), "bad input must leave nothing behind"


def test_an_unknown_option_is_a_usage_error() -> None:
    done = edgekd("distill", "--profil", "jetson-nano")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_debug_shows_where_an_error_came_from() -> None:
    done = edgekd("plan", "--profile", "nope", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_doctor_gives_one_json_document() -> None:
    done = edgekd("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packages"]["core"]["torch"]


def test_ctrl_c_is_one_line_and_exit_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekd", "distill", "--profile", "jetson-nano", "--target", "null"]
    with subprocess.Popen([*command, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # the run has begun
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert first.startswith("[1/8]")
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1].startswith("error: interrupted; a run goes on")
    assert "Traceback" not in rest
