"""Claims about the two files that are pushed to a device: old Python, standard library only, the host's own rules."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device_benchmarks import device_runner, device_state, statistics
from edgekd.device_benchmarks.host import HostState

FILES = [Path(device_runner.__file__), Path(device_state.__file__)]
ALSO_THERE = {"numpy", "device_state", "edgekd"}  # numpy comes with the runtime; the last is this host's way
NEWER_THAN_36 = {"removeprefix", "removesuffix", "perf_counter_ns", "process_time_ns", "capture_output", "text"}


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_what_is_pushed_is_python_3_6_and_imports_the_standard_library_only(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 6))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported - ALSO_THERE <= set(sys.stdlib_module_names)
    assert "__future__" not in imported, "annotations need 3.7"
    keywords = {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
    assert not keywords & {"capture_output", "text", "strict"}
    newer = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} & NEWER_THAN_36
    assert newer <= {"perf_counter_ns", "process_time_ns"}, "those two have a branch of their own"
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and _is_builtin(n.value)], (
        "list[int] needs 3.9"
    )


def _is_builtin(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("list", "dict", "tuple", "set", "type")


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60))
def test_the_devices_median_and_warm_up_rule_are_the_hosts(samples: list[int]) -> None:
    assert device_runner.median(samples) == pytest.approx(statistics.median(samples))
    assert device_runner.is_stable(samples) == statistics.is_stable(samples)


def test_the_two_files_alone_tell_the_state_of_a_machine(tmp_path: Path) -> None:
    for file in FILES:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    runner = str(tmp_path / FILES[0].name)
    done = subprocess.run([sys.executable, "-S", runner, "state"], capture_output=True, check=True, env={})
    state = HostState(**json.loads(done.stdout))
    assert state.kernel.startswith("Linux")
    assert not state.emulated
    assert state.thread_mask


def test_an_emulator_is_told_from_a_machine_by_a_call_that_every_kernel_has() -> None:
    assert not device_state.emulated(), "these tests run on a real kernel"


def test_the_end_of_its_input_ends_it_even_in_a_run(tmp_path: Path) -> None:
    script = "import device_runner, time; device_runner.COMMANDS += ('hang',); "
    script += "device_runner.Bench.hang = lambda self: time.sleep(600); device_runner.main()"
    environment = {"PYTHONPATH": str(FILES[0].parent)}
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, env=environment)
    process.communicate(b'{"do": "hang"}\n', timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("command", "match"),
    [({"do": "block", "runs": 1, "lead_in": 0}, "no model is loaded"), ({"do": "rm"}, "unknown command 'rm'")],
)
def test_a_command_that_makes_no_sense_is_answered_and_survived(command: dict[str, object], match: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in (command, {"do": "state"}))
    process = subprocess.Popen(
        [sys.executable, "-P", str(FILES[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(lines)
        process.stdin.flush()
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
    assert match in first["error"]
    assert second["kernel"].startswith("Linux")


def test_a_file_that_did_not_arrive_whole_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"half")
    model = {"target": "onnxruntime", "files": {str(file): "0" * 64}}
    with pytest.raises(device_runner.Refused, match=r"model\.onnx did not arrive whole"):
        device_runner.Bench().prepare(model, 1, [])
