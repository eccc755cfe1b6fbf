"""Claims about the two files that are pushed to a device: old Python, standard library only, the host's own rules."""

from __future__ import annotations

import ast
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device_benchmarks import device_runner, device_state, statistics
from edgekd.device_benchmarks.contender import Contender, ZooModule
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.process import Worker

QUICK = "import device_runner, device_state; device_state.WATCH_S = 0.05; device_runner.main()"
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


def started(script: str, **settings: Any) -> subprocess.Popen[bytes]:
    """The runner with quick clocks in a process of its own."""
    quick = "import device_runner, device_state, time; device_state.WATCH_S = 0.05; "
    command = [sys.executable, "-c", quick + script + "device_runner.main()"]
    return subprocess.Popen(command, env={"PYTHONPATH": str(FILES[0].parent)}, **settings)


def test_a_link_that_is_reset_ends_it_like_one_that_is_closed() -> None:
    # sshd hands a program one socket for input and output. If sshd dies while an answer lies in it unread, reading
    # gives ECONNRESET and not the end: such runners were found idle hours later.
    here, there = socket.socketpair()
    with started("", stdin=there, stdout=there) as process:
        there.close()
        here.sendall(b'{"do": "nonsense"}\n')
        assert select.select([here], [], [], 20)[0], "it has answered"
        here.close()
        process.wait(timeout=20)


def test_the_death_of_its_parent_ends_it_although_its_input_stays_open() -> None:
    reading, held = os.pipe()
    script = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {QUICK!r}], stdin={reading}, stdout=sys.stdout, close_fds=False); "
        "time.sleep(600)"
    )
    environment = {"PYTHONPATH": str(FILES[0].parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, pass_fds=[reading]
    )
    os.close(reading)
    os.write(held, b'{"do": "nonsense"}\n')
    assert parent.stdout is not None
    with parent.stdout as answers:
        assert b"unknown command" in answers.readline()
        parent.kill()
        parent.wait()
        # The pipe ends when its last writer, the runner, has ended; its own input is still open here.
        assert select.select([answers], [], [], 20)[0]
        assert answers.read() == b""
    os.close(held)


def test_between_commands_it_gives_signs_of_life_that_the_host_passes_over() -> None:
    script = "device_state.SIGN_OF_LIFE_S = 0.05; "
    script += "device_runner.Bench.prepare = device_runner.Bench.load = lambda self, **_: {'ok': 1}; "
    quick = "import device_runner, device_state; device_state.WATCH_S = 0.05; " + script + "device_runner.main()"
    command = ["env", f"PYTHONPATH={FILES[0].parent}", sys.executable, "-c", quick]
    contender = Contender(name="c", source=ZooModule(library="timm", name="x"))
    with Worker(contender, threads=1, command=command, first={}, device="board", timeout_s=20) as worker:
        assert worker.prepared() == {"ok": 1}
        time.sleep(0.4)
        assert worker.load() == {"ok": 1}


def test_an_answer_that_nobody_can_hear_ends_it() -> None:
    with started("", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write(b'{"do": "nonsense"}\n')
        process.stdin.flush()
        process.wait(timeout=20)


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


FORKING = """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=int)
child.start()
child.join(20)
if child.is_alive():
    child.kill()
    raise ImportError("its child hangs")
"""


def test_a_runtime_that_forks_while_it_is_imported_leaves_nobody_waiting(
    onnx_contender: Contender, tmp_path: Path
) -> None:
    """OpenVINO's telemetry did: its child closed `sys.stdin`, whose lock the reading thread held, and never ended."""
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(FORKING)
    model = {"target": "onnxruntime", "files": {}, "path": "", "input_shape": [1], "sha256": ""}
    command = ["env", f"PYTHONPATH={tmp_path}", sys.executable, device_runner.__file__]
    with Worker(onnx_contender, threads=1, command=command, first={"model": model, "affinity": []}) as worker:
        assert worker.prepared()["import_ms"] > 0


@pytest.mark.runtime
def test_openvino_sends_nothing_from_beside_what_is_timed() -> None:
    code = (
        "from edgekd.device_benchmarks.device_runner import runtime_module; import sys; runtime_module('openvino'); "
        "print(sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "None"
