"""What `--on` measures is the profile's own unit, or nothing: no device is reached in these tests."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports import DeviceLostError, parse_device
from edgekd.errors import InputError
from edgekd.pipeline import attached
from edgekd.pipeline.attached import Attached, Found, reach, undriven
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


@pytest.mark.parametrize(("left", "noted"), [("/tmp/edgekd.abc123", True), ("", False)])
def test_what_a_device_that_fails_keeps_of_ours_is_told(
    left: str, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(DeviceSession):
        """The link breaks at the first question, and nobody can see whether the folder went."""

        def __enter__(self) -> DeviceSession:
            return self

        def __exit__(self, *_: object) -> None:
            self.left_behind = left

        def identity(self) -> HostState:
            raise DeviceLostError("the connection broke", where=self.name)

    monkeypatch.setattr(attached, "DeviceSession", Lost)
    found = of_board(load_profile("raspberry-pi-5")).measure({})
    told = (f"board: could not see that {left} was removed there; its keeper does it",)
    assert found == Found(None, "the connection broke", notes=told if noted else ())
