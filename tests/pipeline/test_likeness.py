"""A device is held against its profile by what its kernel and its board tell; what is not told is not judged."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.device_benchmarks.host import HostState, host_state
from edgekd.pipeline.likeness import mismatches
from edgekd.profile import load_profile

ARM, X86 = "Linux 6.6.31 aarch64", "Linux 6.1.0 x86_64"
PI_5 = {"device_model": "Raspberry Pi 5 Model B Rev 1.0", "soc": "brcm,bcm2712"}
ORIN = {"device_model": "NVIDIA Jetson Orin Nano Developer Kit", "soc": "nvidia,tegra234"}


def state(**told: Any) -> HostState:
    return host_state().model_copy(update={"device_model": None, "soc": None, "kernel": ARM, **told})


@pytest.mark.parametrize(
    ("profile", "told", "expected"),
    [
        ("raspberry-pi-5", PI_5, []),
        ("raspberry-pi-5", {"kernel": X86}, ["its kernel runs on x86_64, not on aarch64"]),
        ("raspberry-pi-5", {**PI_5, "kernel": "Linux 6.6.31 armv7l"}, ["its kernel runs on armv7l, not on aarch64"]),
        ("raspberry-pi-4", PI_5, ["it calls itself 'Raspberry Pi 5 Model B Rev 1.0 brcm,bcm2712'"]),
        ("raspberry-pi-zero-2w", {"device_model": "Raspberry Pi Zero 2 W Rev 1.0", "soc": "brcm,bcm2837"}, []),
        ("jetson-orin-nano", ORIN, []),
        ("jetson-orin-nano", PI_5, ["it calls itself 'Raspberry Pi 5 Model B Rev 1.0 brcm,bcm2712'"]),
        ("galaxy-s24", {"device_model": "SM-S921B", "soc": "SM8650"}, []),
        ("galaxy-s24", {"kernel": X86}, ["its kernel runs on x86_64, not on aarch64"]),
        ("raspberry-pi-5", {}, []),
    ],
)
def test_architecture_and_board_are_compared(profile: str, told: dict[str, Any], expected: list[str]) -> None:
    assert mismatches(load_profile(profile), state(**told), frozenset()) == expected


def test_a_processor_with_other_extensions_is_another_device() -> None:
    profile, here = load_profile("x86-avx512-vnni"), state(kernel=X86)
    flags = frozenset(profile.cpu_flags)
    assert mismatches(profile, here, flags) == []
    assert mismatches(profile, here, frozenset()) == [], "a device that does not tell is not judged"
    assert mismatches(profile, here, frozenset({"fpu"})) == [f"its processor lacks {', '.join(profile.cpu_flags)}"]
    more = flags | set(profile.cpu_flags_absent)
    assert mismatches(profile, here, more) == [f"its processor also has {', '.join(profile.cpu_flags_absent)}"]


@pytest.mark.parametrize(
    ("name", "told", "alike"),
    [
        ("raspberry-pi-5-cooled", PI_5, True),
        ("raspberry-pi-4-cooled", PI_5, False),
        ("raspberry-pi-of-mine", PI_5, True),
        ("raspberry-pi-of-mine", ORIN, False),
        ("raspberry-pi-zero-2w@hot", PI_5, False),
    ],
)
def test_a_profile_of_ones_own_is_held_to_the_model_that_it_is_named_after_and_to_no_other_word(
    name: str, told: dict[str, Any], alike: bool
) -> None:
    own = load_profile("raspberry-pi-5").model_copy(update={"name": name})
    assert (mismatches(own, state(**told), frozenset()) == []) == alike


@pytest.mark.parametrize(
    ("profile", "told", "other"),
    [
        ("jetson-orin-nano", "NV Power Mode: 25W 1", ""),
        ("jetson-orin-nano", "NV Power Mode: 15W 0", "15W"),
        ("jetson-orin-nano@15w", "NV Power Mode: 15W 0", ""),
        ("jetson-orin-nano", "NV Power Mode: MAXN_SUPER 2", ""),
        ("jetson-agx-orin", "NVPM WARN: fan mode is not set! NV Power Mode: MAXN 0", ""),
        ("jetson-agx-orin", "NV Power Mode: MODE_30W 2", "MODE_30W"),
        ("jetson-agx-orin@30w", "NV Power Mode: MAXN 0", "MAXN"),
        ("jetson-xavier-nx", "NV Power Mode: MODE_15W_6CORE 2", ""),
        ("jetson-xavier-nx", "NV Power Mode: MODE_20W_6CORE 8", "MODE_20W_6CORE"),
        ("jetson-nano", "NV Power Mode: MAXN 0", ""),
        ("jetson-nano", "NV Power Mode: 5W 1", "5W"),
        ("jetson-tx2", "NV Power Mode: MAXP_CORE_ARM 3", "MAXP_CORE_ARM"),
        ("jetson-orin-nx", "NV Power Mode: 10W 3", ""),
        ("jetson-orin-nano", None, ""),
    ],
)
def test_a_power_mode_is_another_where_nvidias_name_for_it_leaves_no_doubt(
    profile: str, told: str | None, other: str
) -> None:
    known = load_profile(profile)
    expected = [f"its power mode is {other}, and the profile is for {known.power_mode}"] if other else []
    assert mismatches(known, state(**ORIN, power_mode=told), frozenset()) == expected
