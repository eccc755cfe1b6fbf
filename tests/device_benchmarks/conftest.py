"""A model small enough to time in a test, and devices that are real as far as the wire goes: sshd, adb, processes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.artifact import Artifact, TensorSpec
from edgekd.device_benchmarks import Contender, of_artifact
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.transports import parse_device
from edgekd.files import sha256_of


def _tiny_onnx(path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {
        "filters": rng.standard_normal((8, 1, 3, 3), dtype=np.float32),
        "linear": rng.standard_normal((8, 10), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "filters"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "linear"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [image], [logits], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="session")
def onnx_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One convolution and one linear layer as `.onnx`: 28x28x1 to 10 logits."""
    path = _tiny_onnx(tmp_path_factory.mktemp("bench") / "tiny.onnx")
    return Artifact(
        target="onnxruntime",
        precision="fp32",
        path=path,
        inputs=(TensorSpec(name="image", shape=(1, 1, 28, 28), dtype="float32", layout="NCHW"),),
        outputs=(TensorSpec(name="logits", shape=(1, 10), dtype="float32", layout="NC"),),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


@pytest.fixture
def onnx_contender(onnx_artifact: Artifact) -> Contender:
    """The tiny model in ONNX Runtime, as a contender named 'tiny'."""
    return of_artifact(onnx_artifact, name="tiny")


def _helper(name: str) -> ModuleType:
    """A module or package beside the tests, under a name of its own (tests are no package)."""
    folder = Path(__file__).parent / name
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    search = [str(folder)] if folder.is_dir() else None
    spec = importlib.util.spec_from_file_location(f"edgekd_test_{name}", file, submodule_search_locations=search)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def under_ci() -> bool:
    """As `.ci/run` sets it where all fixtures can be hosted, and as hosted services do."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def need(condition: object, reason: str) -> None:
    """Skip with the reason; under CI a fixture that is missing fails instead."""
    if condition:
        return
    if under_ci():
        pytest.fail(f"CI must have it: {reason}")
    pytest.skip(reason)


BRIEF = Schedule(
    processes=1,
    rounds=4,
    block_s=0.005,
    runs_min=8,
    block_runs_max=5,
    contender_cap_s=20,
    warm_up_s=0.01,
    warm_up_cap_s=0.2,
)


@pytest.fixture
def brief() -> Schedule:
    """Four rounds in one process: the plumbing, not the statistics."""
    return BRIEF


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real sshd on the loopback, with keys and a configuration of its own; as `sshd.Sshd`."""
    module = _helper("sshd")
    need(module.available(), module.NEEDED)
    with module.Sshd(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture
def board(sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `Device` reached through that sshd, with the Python of these tests; its temporary folders go into `parent`."""
    monkeypatch.setenv("EDGEKD_SSH", f"ssh -F {sshd.config}")
    parent = tmp_path / "device"
    parent.mkdir()
    address = parse_device(f"ssh://{sshd.user}@board")
    return Device(name="board", address=address, python=sys.executable, folder=str(parent))


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A private adb server, so that nobody's phone is touched."""
    need(shutil.which("adb"), "needs adb (apt install adb)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("adb-home")
    patch = pytest.MonkeyPatch()
    for name, value in {"ANDROID_ADB_SERVER_PORT": port, "HOME": home, "ADB_LOCAL_TRANSPORT_MAX_PORT": 5553}.items():
        patch.setenv(name, str(value))
    yield
    subprocess.run(["adb", "kill-server"], capture_output=True, check=False, timeout=20)
    patch.undo()


@pytest.fixture
def phones(adb_server: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts adbd doubles; every one is disconnected and stopped at the end. Gives (double, its `Device`)."""
    double = _helper("adbd_double")
    with ExitStack() as stack:

        def start(name: str = "phone", **options: Any) -> tuple[Any, Device]:
            faults = double.Faults(**options.pop("faults", {}))
            root = options.pop("at", tmp_path / name)
            started = stack.enter_context(double.AdbdThread(root, faults=faults, **options))
            stack.callback(
                subprocess.run, ["adb", "disconnect", started.serial], capture_output=True, check=False, timeout=20
            )
            folder = str(tmp_path.resolve() / name / "data/local/tmp") if started.adbd.shell is None else ""
            address = parse_device(f"adb:{started.serial}")
            return started, Device(name=name, address=address, python=sys.executable, folder=folder)

        yield start


def leftovers(parent: Path) -> list[str]:
    """What of ours is in the folder, and every process whose command line names it; empty is what every test wants."""
    found = [str(path) for path in parent.rglob("edgekd.*")]
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            line = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
            dead = (proc / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        ours = line[:1] not in (["ssh"], ["adb"]) and int(proc.name) != os.getpid()
        if ours and not dead and any(f"{parent}/edgekd." in word for word in line):
            found.append(f"{proc.name}: {' '.join(line)[:200]}")
    return found


@pytest.fixture
def nothing_left() -> Callable[[Path], bool]:
    """Waits up to 10 s for a device to be as it was, since its end is not ours to hurry."""

    def check(parent: Path) -> bool:
        deadline = time.monotonic() + 10
        while (found := leftovers(parent)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == []
        return True

    return check


@pytest.fixture(scope="session")
def arm64() -> Path:
    """The root of an emulated aarch64 machine."""
    module = _helper("arm64")
    need(module.available(), module.NEEDED)
    root: Path = module.cached()
    if not root.is_dir():
        need(under_ci() or os.environ.get("EDGEKD_ARM64") == "1", module.NOT_BUILT)
        module.build(root)
    module.enable()
    return root


@pytest.fixture(scope="session")
def arm64_sshd(arm64: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real sshd whose every session is in that root."""
    module = _helper("sshd")
    need(module.available(), module.NEEDED)
    folder = tmp_path_factory.mktemp("arm64-sshd")
    wrap = folder / "wrap"
    wrap.write_text(f'#!/bin/sh\nexec chroot {arm64} /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    wrap.chmod(0o755)
    with module.Sshd(folder, force_command=str(wrap)) as started:
        yield started
