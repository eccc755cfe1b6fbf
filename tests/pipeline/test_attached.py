"""What `--on` measures is the profile's own unit, or nothing: no device is reached in these tests."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.transports import parse_device
from edgekd.errors import InputError
from edgekd.pipeline import attached
from edgekd.pipeline.attached import Attached, reach, undriven
from edgekd.pipeline.plan import TargetPlan
from edgekd.pipeline.settings import Settings
from edgekd.profile import HardwareProfile, load_profile, profile_names

BOARD = Device(name="board", address=parse_device("ssh://board:1"))


def of_board(profile: HardwareProfile) -> Attached:
    target = TargetPlan(target=profile.primary.target, precision="fp32", why="")
    return Attached(target, profile, Settings(profile=profile.name, on="ssh://board:1"), "a test", BOARD)


def never(*_: Any) -> Any:
    raise AssertionError("the device was reached")


def test_an_npu_is_not_measured_on_the_cpu_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "DeviceSession", never)
    npu = load_profile("core-ultra-npu")
    expected = "'core-ultra-npu' is for 'openvino' on the npu, and a device runs 'openvino' on its cpu only"
    with pytest.raises(InputError) as refused:
        reach(Settings(profile=npu.name, on="ssh://board:1"), npu)
    assert str(refused.value).startswith(f"--on ssh://board:1: {expected}; choose a profile")
    found = of_board(npu).measure({})
    assert (found.set, found.reason) == (None, expected), "nor by a run that was started before"


@pytest.mark.parametrize(
    ("target", "unit", "driven"),
    [
        ("tflite", "cpu", True),
        ("openvino", "cpu", True),
        ("openvino", "gpu", False),
        ("tflite", "npu", False),
        ("tensorrt", "gpu", True),
        ("tensorrt", "npu", False),
    ],
)
def test_a_cpu_is_driven_and_a_gpu_by_tensorrt(target: str, unit: str, driven: bool) -> None:
    profile = load_profile("raspberry-pi-5")
    first = profile.primary.model_copy(update={"target": target, "unit": unit})
    assert (undriven(profile.model_copy(update={"runtimes": (first,)})) == "") == driven


def test_every_board_and_phone_that_edgekd_knows_is_driven() -> None:
    remote = [p for p in map(load_profile, profile_names()) if p.transport in ("ssh", "adb")]
    assert remote
    assert [p.name for p in remote if undriven(p)] == []
