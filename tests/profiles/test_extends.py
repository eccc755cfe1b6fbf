"""A profile may extend another: what it says goes over what it inherits, and every number keeps its own source."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.profile import HardwareProfile, check_profile, facts_of, load_profile, parse_profile
from edgekd.profile.documents import parse_toml, unsourced

BASE = """
name = "base"
title = "A board"
ram_mib = 1024
p90_over_p50 = 1.1
transport = "ssh"
notes = ["old"]
power_mode = "full"
[evidence]
ram_mib = { source = "s", confidence = "measured" }
p90_over_p50 = { source = "s", confidence = "measured" }
[[power_modes]]
name = "full"
title = "all"
source = "vendor's guide"
confidence = "vendor"
[[power_modes]]
name = "half"
title = "half"
limit_w = 5.0
source = "measured at half clock"
confidence = "measured"
[[power_modes.units]]
kind = "cpu"
peak_fp32_gflops = 10.0
[[units]]
kind = "cpu"
name = "4 cores"
peak_fp32_gflops = 20.0
peak_int8_gops = 40.0
dram_gb_per_s = 8.0
calibration_devices = ["A board"]
source = "the old sheet"
confidence = "datasheet"
[units.evidence]
dram_gb_per_s = { source = "a friend", confidence = "recalled" }
[[runtimes]]
target = "tflite"
version = "2"
unit = "cpu"
precisions = ["fp32", "int8"]
why = "fast"
source = "s"
[[runtimes]]
target = "onnxruntime"
version = "1.20"
unit = "cpu"
precisions = ["fp32"]
why = "slow"
source = "s"
[quantisation]
preferred_precision = "int8"
scheme = "affine"
why = "w"
source = "s"
[budgets]
latency_p90_ms = 10.0
peak_memory_mib = 64
artifact_size_mib = 8
why = "w"
"""
HEAD = 'extends = "base.toml"\nname = "child"\ntitle = "Another board"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")
    return tmp_path


def child(folder: Path, text: str = "", head: str = HEAD) -> HardwareProfile:
    return parse_profile(head + text, where="child.toml", folder=folder)


def test_a_child_that_says_nothing_is_its_parent_under_its_own_name(folder: Path) -> None:
    parent = load_profile(str(folder / "base.toml"))
    assert child(folder) == parent.model_copy(update={"name": "child", "title": "Another board"})


def test_name_and_title_are_not_inherited(folder: Path) -> None:
    with pytest.raises(InputError, match=r"child\.toml: missing key 'name' \(and 1 more\)"):
        child(folder, head='extends = "base.toml"\n')


def test_units_merge_by_kind_runtimes_by_target_and_notes_add_up(folder: Path) -> None:
    profile = child(
        folder,
        'notes = ["new"]\n[[units]]\nkind = "npu"\nname = "N"\nprecisions = ["int8"]\n'
        'source = "s"\nconfidence = "vendor"\n'
        '[[runtimes]]\ntarget = "onnxruntime"\nunit = "cpu"\nversion = "1.30"\n'
        '[[runtimes]]\ntarget = "tflite"\nunit = "npu"\nversion = "2"\nprecisions = ["int8"]\n'
        'why = "w"\nsource = "s"\n',
    )
    assert profile.notes == ("old", "new")
    assert [unit.kind for unit in profile.units] == ["cpu", "npu"]
    assert [(r.target, r.unit, r.version) for r in profile.runtimes] == [
        ("tflite", "cpu", "2"),
        ("onnxruntime", "cpu", "1.30"),
        ("tflite", "npu", "2"),
    ]
    assert profile.runtime("tflite", "npu").precisions == ("int8",)
    with pytest.raises(InputError, match="no runtime 'onnxruntime' on the npu; it has: tflite on the cpu"):
        profile.runtime("onnxruntime", "npu")


def test_inherited_numbers_keep_the_old_source_and_new_ones_get_the_new(folder: Path) -> None:
    profile = child(
        folder,
        '[[units]]\nkind = "cpu"\npeak_fp32_gflops = 30.0\nsource = "the new sheet"\nconfidence = "vendor"\n',
    )
    found = {fact.key: (fact.value, fact.source, fact.confidence) for fact in facts_of(profile) if fact.table}
    assert found["peak_fp32_gflops"] == (30.0, "the new sheet", "vendor")
    assert found["peak_int8_gops"] == (40.0, "the old sheet", "datasheet")
    assert found["dram_gb_per_s"] == (8.0, "a friend", "recalled")


def test_evidence_of_a_number_goes_when_the_number_does(folder: Path) -> None:
    profile = child(
        folder,
        '[[units]]\nkind = "cpu"\ndram_gb_per_s = 9.0\n[units.evidence]\n'
        'dram_gb_per_s = { source = "a ruler", confidence = "measured" }\n',
    )
    found = {fact.key: fact.source for fact in facts_of(profile) if fact.table}
    assert (found["dram_gb_per_s"], found["peak_fp32_gflops"]) == ("a ruler", "the old sheet")


def test_a_number_that_changes_without_a_source_is_a_mistake(folder: Path) -> None:
    with pytest.raises(InputError, match=r"units\[cpu\]\.dram_gb_per_s: changes an inherited number"):
        child(folder, '[[units]]\nkind = "cpu"\ndram_gb_per_s = 9.0\n')
    assert list(unsourced((parse_toml("", where="alone"),))) == []


def test_grandparents_count_and_a_shipped_family_may_be_extended(folder: Path) -> None:
    (folder / "middle.toml").write_text(HEAD.replace("child", "middle") + 'soc = "S"\n', encoding="utf-8")
    profile = child(folder, head=HEAD.replace("base.toml", "middle.toml"))
    assert (profile.soc, profile.ram_mib) == ("S", 1024)
    board = parse_profile(
        'extends = "raspberry-pi-5"\nname = "cm5"\ntitle = "Compute Module 5"\nram_mib = 2000\n', where="cm5.toml"
    )
    assert board.units == load_profile("raspberry-pi-5").units


def test_a_circle_and_an_unknown_parent_are_named(folder: Path) -> None:
    (folder / "a.toml").write_text('extends = "b.toml"\n', encoding="utf-8")
    (folder / "b.toml").write_text('extends = "a.toml"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"extends goes in a circle: .*a\.toml -> .*b\.toml -> .*a\.toml"):
        load_profile(str(folder / "a.toml"))
    with pytest.raises(InputError, match=r"extends = 'jetson-orrin': no such profile; did you mean 'jetson-orin'"):
        child(folder, head=HEAD.replace("base.toml", "jetson-orrin"))
    with pytest.raises(InputError, match=r"extends = 'gone\.toml': no such file; looked for .*gone\.toml"):
        child(folder, head=HEAD.replace("base.toml", "gone.toml"))
    with pytest.raises(InputError, match=r"extends = 3: a profile's name or a file, in quotes"):
        child(folder, head=HEAD.replace('"base.toml"', "3"))


def test_a_mistake_is_blamed_on_the_file_that_it_stands_in(folder: Path) -> None:
    base = folder / "base.toml"
    base.write_text(BASE.replace("ram_mib", "ram_mb"), encoding="utf-8")
    (folder / "child.toml").write_text(HEAD + 'transport = "usb"\n', encoding="utf-8")
    profile, mistakes = check_profile(str(folder / "child.toml"))
    assert profile is None
    assert [str(mistake.where) for mistake in mistakes] == [str(base), str(folder / "child.toml")]
    assert "unknown key 'ram_mb'; did you mean 'ram_mib'?" in str(mistakes[0])
    assert "transport = 'usb'" in str(mistakes[1])


def test_a_power_mode_overrides_peaks_and_says_so(folder: Path) -> None:
    whole, half = (load_profile(f"{folder}/base.toml{mode}") for mode in ("", "@half"))
    assert (whole.name, half.name, half.device_name) == ("base", "base@half", "base")
    assert (half.unit("cpu").peak_fp32_gflops, half.unit("cpu").peak_int8_gops) == (10.0, 40.0)
    assert half.power is not None
    assert half.power.limit_w == 5.0
    found = {fact.key: fact.source for fact in facts_of(half) if fact.table == "units[cpu]"}
    assert (found["peak_fp32_gflops"], found["peak_int8_gops"]) == ("measured at half clock", "the old sheet")
    # Published rows are of the default mode: a relative of this one, not the device.
    assert (half.unit("cpu").calibration_devices, half.unit("cpu").relative_devices) == ((), ("A board",))
    assert load_profile(f"{folder}/base.toml@full") == whole


def test_unknown_modes_name_the_nearest(folder: Path) -> None:
    with pytest.raises(InputError, match=r"profile 'base': no power mode 'halv'; did you mean 'half'"):
        load_profile(f"{folder}/base.toml@halv")
    with pytest.raises(InputError, match=r"profile 'pixel-8': no power modes; leave '@15w' out"):
        load_profile("pixel-8@15w")


def test_what_nobody_states_is_filled_in_and_marked(folder: Path) -> None:
    found = {fact.key: fact.confidence for fact in facts_of(child(folder)) if fact.table == "units[cpu]"}
    assert (found["efficiency"], found["peak_fp32_gflops"]) == ("assumed", "datasheet")
