"""One file per way to be wrong; its first line is the message that a user must see, all of it and on one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.files import write_text
from edgekd.profile import check_profile, load_profile
from edgekd.profile.doubts import ir_version_of

FOLDER = Path(__file__).resolve().parents[1] / "bad_profiles"
REPORTED = sorted((FOLDER / "reported").glob("*.toml"))  # these load: only the check reports them
BAD = sorted(set(FOLDER.rglob("*.toml")) - set(REPORTED))


@pytest.mark.parametrize("path", BAD, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_the_message_is_the_one_in_the_first_line(path: Path) -> None:
    # FOLDER: where the file lies, for messages that name a second file.
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").replace("FOLDER", str(path.parent))
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert str(caught.value) == f"{path}: {expected}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", REPORTED, ids=lambda path: path.stem)
def test_what_only_the_check_reports_is_one_line_and_the_file_still_loads(path: Path) -> None:
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    profile, mistakes = check_profile(str(path))
    assert profile is None
    assert [str(mistake) for mistake in mistakes] == [f"{path}: {expected}"]
    assert load_profile(str(path)).name in ("mine", "jetson-nano")


def test_reported_mistakes_stand_beside_those_that_keep_a_file_from_loading(tmp_path: Path) -> None:
    text = (FOLDER / "reported" / "idle_above_the_limit.toml").read_text(encoding="utf-8")
    file = write_text(tmp_path / "x.toml", text.replace("[power]", 'ram_mib = 4000\ntransport = "usb"\n[power]'))
    assert [str(mistake).removeprefix(f"{file}: ").split(":")[0] for mistake in check_profile(str(file))[1]] == [
        "transport = 'usb'",
        "ram_mib = 4000",
        "power.idle_w = 27 is not below power.limit_w = 5; idle is what the device draws doing nothing, "
        "the limit what it may draw at most",
    ]


def test_a_reported_mistake_is_blamed_on_the_parent_that_has_it_and_evidence_in_the_child_cures_it(
    tmp_path: Path,
) -> None:
    text = (FOLDER / "reported" / "memory_without_evidence.toml").read_text(encoding="utf-8")
    parent = write_text(tmp_path / "parent.toml", text)
    head = 'extends = "parent.toml"\nname = "child"\ntitle = "Another board"\n'
    child = write_text(tmp_path / "child.toml", head)
    assert [mistake.where for mistake in check_profile(str(child))[1]] == [str(parent)]
    write_text(child, f'{head}[evidence]\nram_mib = {{ source = "free -m", confidence = "measured" }}\n')
    assert check_profile(str(child)) == (load_profile(str(child)), [])


@pytest.mark.parametrize("value", ["3", '"x"', "[1]", "[[1]]", "{ kind = [1] }", "[{ kind = [1], target = [2] }]"])
@pytest.mark.parametrize("key", ["units", "runtimes", "power", "power_modes", "evidence", "budgets", "quantisation"])
def test_tables_of_another_shape_are_mistakes_and_no_crash(tmp_path: Path, key: str, value: str) -> None:
    file = write_text(tmp_path / "x.toml", f'name = "x"\ntitle = "X"\nram_mib = 64\n{key} = {value}\n')
    assert any(key in str(mistake) for mistake in check_profile(str(file))[1])


def test_ir_versions_agree_with_the_onnx_package() -> None:
    helper = pytest.importorskip("onnx.helper")
    for opset in range(7, 29):
        assert ir_version_of(opset) == helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def test_a_file_with_five_mistakes_gets_five_lines() -> None:
    profile, mistakes = check_profile(str(FOLDER / "extended" / "five_mistakes.toml"))
    assert profile is None
    named = ["efficency", "ram_mb", "transport = 'usb'", "confidence = 'guess'", "latency_p90_ms = -1.0"]
    assert [name for name, mistake in zip(named, mistakes, strict=True) if name in str(mistake)] == named


def test_one_slip_of_a_key_is_one_line_and_hides_nothing(tmp_path: Path) -> None:
    text = (FOLDER / "keys" / "two_mistakes.toml").read_text(encoding="utf-8")
    file = write_text(tmp_path / "x.toml", text.replace('transport = "ssh"', 'transport = "usb"'))
    assert [mistake.what.split(":")[0] for mistake in check_profile(str(file))[1]] == [
        "unknown key 'units[gpu].dram_gbps'",
        "unknown key 'ram_mb'",
        "transport = 'usb'",
    ]


def test_there_is_a_file_for_each_family_of_mistakes() -> None:
    assert {path.parent.name for path in BAD} == {"extended", "keys", "structure", "values"}
    assert len(REPORTED) >= 23
    assert len(BAD) >= 50
