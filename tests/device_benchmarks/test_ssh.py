"""Claims about devices over ssh, against a real sshd on the loopback: the same figures, every fault one line, and
nothing of ours left on the device.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.device_benchmarks import Contender, measure_all
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports import DeviceError, DeviceLostError
from edgekd.errors import CheckError, EdgekdError, InputError

Left = Callable[[Path], bool]


def measured(
    device: Device, contender: Contender, schedule: Schedule, act: Callable[[str, float], None] | None = None
) -> MeasurementSet:
    with DeviceSession(device, reconnect_s=4) as session:
        return measure_all([contender], mode=schedule, place=session, on_progress=act)


def at_round(number: int, action: Callable[[], None]) -> Callable[[str, float], None]:
    """Once, before the round begins."""
    done: list[str] = []

    def act(what: str, fraction: float) -> None:
        if what.endswith(f"round {number} of 4") and not done:
            done.append(what)
            action()

    return act


def kill(board: Device, word: str, number: int = signal.SIGKILL) -> None:
    """A signal to every process on the 'device' with the word in its command line."""
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            line = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if line[0].endswith("python") and any(f"{board.folder}/edgekd." in w and word in w for w in line[1:3]):
            os.kill(int(proc.name), number)


def test_a_device_gives_the_same_document_as_this_host_with_its_own_identity(
    board: Device, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    with DeviceSession(board) as session:
        other = onnx_contender.model_copy(update={"name": "other"})
        there = measure_all([onnx_contender, other], mode=brief, pairs=[("tiny", "other")], place=session)
    here = measure_all([onnx_contender], mode=brief)
    row = there.measurement("tiny")
    assert row.model_dump().keys() == here.measurement("tiny").model_dump().keys()
    assert (row.provenance.device, row.kind) == ("board", "measured")
    assert row.provenance.host_start.versions["onnxruntime"] == row.provenance.runtime_version
    assert row.provenance.parity is not None
    assert row.provenance.parity.max_relative_error <= 1e-4
    assert row.provenance.input_sha256 == here.measurement("tiny").provenance.input_sha256
    assert there.ratio("tiny", "other") is not None
    assert all(ns > 0 for ns in row.samples_ns)
    assert nothing_left(Path(board.folder))


def test_hostile_names_reach_neither_shell(
    board: Device, onnx_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    source: Any = onnx_contender.source
    name = "a'b \"$(touch pwned)`touch pwned`;touch pwned\n&|-- ü.onnx"
    path = tmp_path / name
    path.write_bytes(source.artifact.path.read_bytes())
    folder = tmp_path / "dir '$(touch pwned); touch pwned \\"
    folder.mkdir()
    hostile = source.model_copy(update={"artifact": source.artifact.model_copy(update={"path": path})})
    contender = onnx_contender.model_copy(update={"source": hostile})
    device = board.model_copy(update={"folder": str(folder), "env": {"WORD": "$(touch pwned)'; touch pwned"}})
    with DeviceSession(device) as session:
        done = session.remote.run(["printf", "%s|", "it's", "$(touch pwned)", "a\nb", "-n"], timeout_s=20)
        assert done.stdout == "it's|$(touch pwned)|a\nb|-n|"
        assert measure_all([contender], mode=brief, place=session).measurement("tiny").n > 0
    assert nothing_left(folder)
    assert [p for root in (tmp_path, Path.cwd(), Path.home()) for p in root.glob("**/pwned") if root == tmp_path] == []
    assert not (Path.cwd() / "pwned").exists()
    assert not (Path.home() / "pwned").exists()


def _changed(board: Device, sshd: Any) -> Device:
    sshd.trust("other")
    return board


def _unknown(board: Device, sshd: Any) -> Device:
    sshd.known.write_text("")
    return board


def _at(board: Device, **update: Any) -> Device:
    return board.model_copy(update={"address": board.address.model_copy(update=update)})


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (
            _changed,
            "board: its host key changed since this host first saw it; if the device was installed anew: ssh-keyg",
        ),
        (
            _unknown,
            "board: its host key is not known here; connect once by hand and compare the fingerprint: ssh board",
        ),
        (lambda b, s: _at(b, host="stranger"), "board: authentication was refused; .*ssh-copy-id stranger"),
        (lambda b, s: _at(b, port=1), "board: nothing listens on its ssh port"),
        (lambda b, s: _at(b, host="no-such-host.invalid"), "board: no such host name"),
        (
            lambda b, s: b.model_copy(update={"folder": "/no/such/folder"}),
            "board: the folder for temporary files does not",
        ),
        (
            lambda b, s: b.model_copy(update={"folder": "/proc"}),
            "board: (the folder for temporary files|not allowed there)",
        ),
        (
            lambda b, s: b.model_copy(update={"python": "/no/python"}),
            r"board: no Python \(/no/python\) on the device; ",
        ),
        (
            lambda b, s: b.model_copy(update={"ssh_options": ("-o", "NoSuchOption=1")}),
            "board: ssh does not accept its own",
        ),
    ],
)
def test_a_device_that_cannot_be_used_is_one_line_with_the_cure(
    board: Device, sshd: Any, fault: Callable[[Device, Any], Device], match: str, nothing_left: Left
) -> None:
    try:
        with (
            pytest.raises(DeviceError, match=match) as caught,
            DeviceSession(fault(board, sshd)) as session,
        ):
            session.state()
    finally:
        sshd.trust("host")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert nothing_left(Path(board.folder))


def test_an_unreachable_host_is_given_up_in_seconds(board: Device) -> None:
    silent = _at(board, host="192.0.2.1").model_copy(update={"ssh_options": ("-o", "ConnectTimeout=1")})
    with pytest.raises(DeviceError, match=r"board: (unreachable; is it on|no answer|nothing listens)"):
        DeviceSession(silent).__enter__()


def test_no_space_left_is_said_and_nothing_stays(
    board: Device, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "edgekd-test", board.folder], check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(DeviceError, match=r"device_\w+.py did not arrive: no space left on the device; free some"):
            measured(board, onnx_contender, brief)
        assert nothing_left(Path(board.folder))
    finally:
        subprocess.run(["umount", board.folder], check=True)


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (signal.SIGKILL, "board: the runner was killed on the device; most often it ran out of memory"),
        (signal.SIGILL, r"board: the runner crashed on the device \(SIGILL\).*is its runtime built for this processor"),
    ],
)
def test_a_runner_that_is_killed_or_crashes_is_named_as_such(
    board: Device, onnx_contender: Contender, brief: Schedule, number: int, match: str, nothing_left: Left
) -> None:
    with pytest.raises(DeviceError, match=match):
        measured(board, onnx_contender, brief, at_round(2, lambda: kill(board, "device_runner", number)))
    assert nothing_left(Path(board.folder))


def test_a_runtime_that_is_not_there_is_named_with_its_cure(
    board: Device, onnx_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++.so.6: version GLIBCXX_3.4.30 not found')")
    device = board.model_copy(update={"env": {"PYTHONPATH": str(tmp_path)}})
    with pytest.raises(
        InputError, match=r"board, contender 'tiny': ONNX Runtime is not on the device \(libstdc.*pip ins"
    ):
        measured(device, onnx_contender, brief)
    assert nothing_left(Path(board.folder))


def test_garbage_instead_of_answers_is_shown(
    board: Device, onnx_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    liar = tmp_path / "python"
    liar.write_text(
        f'#!/bin/sh\ncase "$*" in *-c*|*state*) exec {sys.executable} "$@";; esac\necho Segmentation fault?; cat\n'
    )
    liar.chmod(0o755)
    with pytest.raises(
        CheckError, match=r"board, contender 'tiny': its process answered with.*b'Segmentation fault\?'"
    ):
        measured(board.model_copy(update={"python": str(liar)}), onnx_contender, brief)
    assert nothing_left(Path(board.folder))


def test_a_clock_that_jumps_is_noticed(
    board: Device, onnx_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    code = "import time; true = time.perf_counter_ns; time.perf_counter_ns = lambda: 1000 * true()"
    (tmp_path / "sitecustomize.py").write_text(code)
    device = board.model_copy(update={"env": {"PYTHONPATH": str(tmp_path)}})
    slow = brief.model_copy(update={"block_s": 30.0, "block_runs_max": 200, "runs_min": 4000, "warm_up_s": 0.3})
    with pytest.raises(EdgekdError, match=r"board: its clock jumped: .* s there in a block that took .* s"):
        measured(device, onnx_contender, slow)
    assert nothing_left(Path(board.folder))


def test_after_a_reboot_it_goes_on_with_the_rounds_that_are_left(
    board: Device, sshd: Any, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    def reboot() -> None:
        sshd.stop()
        threading.Timer(1.0, sshd.start).start()

    found = measured(board, onnx_contender, brief, at_round(3, reboot))
    row = found.measurement("tiny")
    assert [(b.process, b.round) for b in row.blocks] == [
        (p, r) for p, r in ((0, 0), (0, 1), (1, 2), (1, 3)) for _ in "AA"
    ]
    assert len(found.interruptions) == 1
    assert found.interruptions[0].startswith("board: the connection broke")
    assert found.partial is None
    assert nothing_left(Path(board.folder))


def test_what_was_measured_before_the_device_went_for_good_is_kept_and_marked(
    board: Device, sshd: Any, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    try:
        found = measured(board, onnx_contender, brief, at_round(3, sshd.stop))
    finally:
        sshd.start()
    assert found.partial is not None
    assert "board: the connection broke" in found.partial
    assert "not back within 4 s (nothing listens on its ssh port)" in found.partial
    assert {b.round for b in found.measurement("tiny").blocks} == {0, 1}
    assert nothing_left(Path(board.folder))


def test_a_device_that_goes_before_the_first_round_is_an_error(
    board: Device, sshd: Any, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    try:
        with (
            pytest.raises(DeviceLostError, match=r"board: the connection broke.*not back within 1 s"),
            DeviceSession(board, reconnect_s=1) as session,
        ):
            measure_all([onnx_contender], mode=brief, place=session, on_progress=at_round(1, sshd.stop))
    finally:
        sshd.start()
    assert nothing_left(Path(board.folder))


def test_killing_this_host_leaves_nothing_there(board: Device, nothing_left: Left) -> None:
    code = (
        "import sys, time; from edgekd.device_benchmarks.devices import Device; "
        "from edgekd.device_benchmarks.session import DeviceSession; "
        f"s = DeviceSession(Device.model_validate_json({board.model_dump_json()!r})); s.__enter__(); "
        "import subprocess; subprocess.Popen(s.remote.command(['sleep', '600'], timeout_s=600)); "
        "print('held', flush=True); time.sleep(60)"
    )
    held = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    assert list(Path(board.folder).iterdir())
    children = subprocess.run(
        ["pgrep", "-P", str(held.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in [held.pid, *map(int, children)]:  # a power cut here: no end of the process sends a word
        os.kill(pid, signal.SIGKILL)
    held.wait()
    held.stdout.close()
    time.sleep(0.2)
    assert nothing_left(Path(board.folder))


def test_a_board_without_a_runtime_gets_one_from_wheels_and_keeps_nothing(
    board: Device, onnx_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    """The wheels are this host's own numpy and ONNX Runtime, packed again; `-S` is a Python that has neither."""
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    without = board.model_copy(update={"python": str(bare)})
    with pytest.raises(InputError, match="ONNX Runtime is not on the device"), DeviceSession(without) as session:
        measure_all([onnx_contender], mode=brief, place=session)
    folder = tmp_path / "wheels"
    folder.mkdir()
    site = Path(np.__file__).parents[1]
    with zipfile.ZipFile(folder / "all.whl", "w") as wheel:
        for name in ("numpy", "numpy.libs", "onnxruntime/__init__.py", "onnxruntime/capi"):
            for path in [site / name, *sorted((site / name).rglob("*"))]:
                if path.is_file() and path.suffix != ".pyc":
                    wheel.write(path, path.relative_to(site))
    with DeviceSession(without.model_copy(update={"wheels": folder})) as session:
        found = measure_all([onnx_contender], mode=brief, place=session)
    assert found.measurement("tiny").provenance.parity is not None
    assert nothing_left(Path(board.folder))
    with (
        pytest.raises(InputError, match="no wheels there; fill it: pip download"),
        DeviceSession(without.model_copy(update={"wheels": tmp_path})) as session,
    ):
        session.state()


def test_the_shared_connection_is_private_and_gone_afterwards(board: Device) -> None:
    with DeviceSession(board) as session:
        words = session.remote.command(["true"], timeout_s=5)
        socket = Path(next(word for word in words if word.startswith("ControlPath=")).partition("=")[2])
        assert socket.is_socket()
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert "BatchMode=yes" in shlex.join(words)
    assert not socket.parent.exists()
