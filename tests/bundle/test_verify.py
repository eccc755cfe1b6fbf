"""A bundle that was changed: what is wrong with it is named, and nothing of it is executed."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from bundles import edited, edited_manifest, failures

from edgekd.bundle import verify
from edgekd.bundle.manifest import MANIFEST_NAME


def test_a_fresh_bundle_verifies_and_reruns_its_parity_vectors(bundle: Path) -> None:
    found = verify(bundle)
    states = {check.name: check.state for check in found.checks}
    assert found.ok, failures(found)
    assert states["parity: onnxruntime-fp32"] == "pass"
    assert states["parity inputs are normalised images"] == "pass"
    assert "not TensorRT" in str(found) or "stands in" in str(found)


def test_a_changed_file_is_named(bundle: Path, tmp_path: Path) -> None:
    def edit(files: dict[str, bytes]) -> None:
        weights = bytearray(files["artifacts/onnxruntime-fp32/model.onnx"])
        weights[100] ^= 1
        files["artifacts/onnxruntime-fp32/model.onnx"] = bytes(weights)

    found = verify(edited(bundle, tmp_path / "b.zip", edit))
    assert "'artifacts/onnxruntime-fp32/model.onnx' was changed" in failures(found)["sha256 and size of every file"]
    assert not found.ok


def test_nothing_of_a_changed_bundle_is_executed(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({"run.py": b"print(1)"})))
    assert [check.state for check in found.checks if check.name.startswith("parity")] == ["skipped"]


def test_a_missing_file_is_named(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.pop("labels.txt") and None))
    assert failures(found) == {"no file missing": "'labels.txt' is missing"}


def test_an_added_file_is_named(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({"extra.sh": b"rm"})))
    assert failures(found) == {"no file added": "'extra.sh' is not in the manifest"}


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/x", "a/../../x", "C:\\x", "a\\b", "./x", "folder/", "a//b", "nul\x01"]
)
def test_a_name_that_leaves_its_folder_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({name: b"x"})))
    assert list(failures(found)) == ["safe names"]
    assert not (tmp_path.parent / "outside.txt").exists()


def test_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "b.zip"))
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert failures(verify(path)) == {"safe names": "'link': a link or a special file"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["labels.txt", "LABELS.TXT"])
def test_two_entries_for_one_file_are_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "b.zip"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "other")
    assert "appears twice" in failures(verify(path))["safe names"]


def test_a_zip_bomb_is_refused_before_it_is_inflated(bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "b.zip"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(40 * 2**20))
    assert "'zeros.bin' inflates" in failures(verify(path))["bounded size"]


def test_a_damaged_entry_is_named(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as archive:
        entry = archive.getinfo("parity/images.bin")
    start = entry.header_offset + 30 + len(entry.filename)
    data[start + 50 : start + 60] = bytes(10)
    path = tmp_path / "b.zip"
    path.write_bytes(bytes(data))
    assert "'parity/images.bin' is damaged" in failures(verify(path))["sha256 and size of every file"]


def test_an_unknown_schema_version_is_said(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited_manifest(bundle, tmp_path / "b.zip", schema_version=2))
    assert failures(found) == {"manifest": "manifest.json: schema version 2 is not known; this edgekd reads version 1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "format"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 99999, "not valid JSON"),
    ],
)
def test_a_manifest_that_is_no_manifest_is_said(text: bytes, said: str, bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({MANIFEST_NAME: text})))
    assert said in failures(found)["manifest"]


def test_a_wrong_field_of_the_manifest_is_named(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited_manifest(bundle, tmp_path / "b.zip", seed="x"))
    assert "'seed'" in failures(found)["manifest"]


def test_edgekd_verify_exits_0_and_1_and_prints_json(bundle: Path, tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from edgekd.commands.verify import verify as command

    app = typer.Typer()
    app.command()(command)
    good = CliRunner().invoke(app, [str(bundle), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    broken = edited(bundle, tmp_path / "b.zip", lambda files: files.update({"extra.sh": b"rm"}))
    bad = CliRunner().invoke(app, [str(broken)])
    assert bad.exit_code == 1
    assert "'extra.sh' is not in the manifest" in bad.stdout
