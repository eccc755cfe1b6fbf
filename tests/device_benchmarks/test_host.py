"""Claims about reading the host's state, on made-up /sys and /proc trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.device_benchmarks import host


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host, "SYS", tmp_path / "sys")
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_governor_clock_temperature_and_cpu_are_read_in_their_units(board: Path) -> None:
    write(board / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    write(board / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1479000\n")
    write(board / "sys/class/thermal/thermal_zone0/type", "CPU-therm\n")
    write(board / "sys/class/thermal/thermal_zone0/temp", "41500\n")
    write(board / "proc/cpuinfo", "processor : 0\nmodel name : ARMv8 rev 1\nFeatures : fp asimd asimddp\n")
    state = host.host_state()
    assert (state.governor, state.frequency_mhz) == ("schedutil", 1479.0)
    assert state.temperatures_c == {"CPU-therm/thermal_zone0": 41.5}
    assert state.cpu_model == "ARMv8 rev 1"
    assert "asimddp" in host.cpu_flags()


def test_what_a_virtual_machine_does_not_tell_is_none_and_not_a_guess(board: Path) -> None:
    state = host.host_state()
    assert (state.governor, state.frequency_mhz, state.cpu_steal_s) == (None, None, None)
    assert state.temperatures_c == {}
    assert state.cpu_model
    assert host.cpu_flags() == frozenset()


def test_time_stolen_by_the_hypervisor_is_in_seconds(board: Path) -> None:
    write(board / "proc/stat", "cpu  10 0 10 100 0 0 0 250 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert host.host_state().cpu_steal_s == pytest.approx(2.5, rel=0.01)


def test_versions_name_only_what_is_installed() -> None:
    assert set(host.installed_versions(["numpy", "no-such-package"])) == {"numpy"}


def test_a_board_tells_its_model_soc_clocks_and_only_a_hash_of_its_serial(board: Path) -> None:
    write(board / "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(board / "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    write(board / "proc/device-tree/serial-number", "10000000abcdef\0")
    write(board / "proc/meminfo", "MemTotal:        8245248 kB\nMemFree:  1 kB\n")
    for n, khz in ((0, 1500000), (1, 2400000)):
        write(board / f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq", f"{khz}\n")
    state = host.host_state()
    assert (state.device_model, state.soc) == ("Raspberry Pi 5 Model B Rev 1.0", "brcm,bcm2712")
    assert state.frequencies_mhz == {"cpu0": 1500.0, "cpu1": 2400.0}
    assert state.memory_mib == pytest.approx(8052, abs=1)
    assert state.serial_sha256 is not None
    assert "abcdef" not in state.model_dump_json().replace(state.serial_sha256, "")
