"""Check a bundle again: that it is safe to open, whole, unchanged, and that its artifacts still compute the same."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from edgekd.artifact import Frozen
from edgekd.bundle import archive
from edgekd.bundle.manifest import MANIFEST_NAME, BundledArtifact, Manifest, parse_manifest
from edgekd.bundle.vectors import (
    FOLDER,
    IMAGES,
    INPUTS,
    NORMALISE_ERROR_MAX,
    disagreements_allowed,
    load_array,
    normalise_error,
)
from edgekd.errors import CheckError, EdgekdError, InputError
from edgekd.files import read_json, write_json

REPLAY_COMMAND = (sys.executable, "-P", "-m", "edgekd.bundle.replay")
ENGINE_SUFFIXES = (".engine", ".plan", ".trt", ".rtx")
MANIFEST_BYTES_MAX = 64 * 2**20
NAMES_SHOWN = 4
CheckState = Literal["pass", "fail", "skipped"]


class BundleCheck(Frozen):
    """One thing that was checked. `skipped` says why it could not be; it is not a pass."""

    name: str
    state: CheckState
    detail: str


class VerifyReport(Frozen):
    """What `verify` found. `ok`: no check failed (a skipped one does not count as failed)."""

    schema_version: Literal[1] = 1
    bundle: str
    title: str = ""
    checks: tuple[BundleCheck, ...]

    @property
    def ok(self) -> bool:
        """True when nothing failed."""
        return all(check.state != "fail" for check in self.checks)


def verify(path: Path | str, *, timeout_s: float = 300.0) -> VerifyReport:
    """Re-check a bundle. What is wrong with its content is in the report, not raised.

    Each artifact whose runtime is installed runs the parity vectors in a process of its own, at most `timeout_s` long.
    Raises: InputError: not a bundle (missing, not a zip, truncated, or a zip without manifest.json).
    """
    path = Path(path)
    with archive.open_zip(path) as opened:
        if MANIFEST_NAME not in opened.namelist():
            raise InputError(f"not a bundle (a zip without {MANIFEST_NAME})", where=path)
        checks = [_of("safe names", list(archive.unsafe_names(opened)), f"{len(opened.infolist())} entries")]
        total_mib = sum(entry.file_size for entry in opened.infolist()) / 2**20
        checks.append(_of("bounded size", list(archive.excessive_sizes(opened)), f"{total_mib:.1f} MiB unpacked"))
        if any(check.state == "fail" for check in checks):
            return VerifyReport(bundle=str(path), checks=tuple(checks))
        manifest, check = _manifest(opened)
        checks.append(check)
        if manifest is None:
            return VerifyReport(bundle=str(path), checks=tuple(checks))
        checks.extend(_files(opened, manifest))
        if all(check.state != "fail" for check in checks):
            checks.extend(_content(opened, manifest, timeout_s=timeout_s))
        else:
            checks.append(BundleCheck(name="parity", state="skipped", detail="the files are not what they should be"))
        return VerifyReport(bundle=str(path), title=manifest.title, checks=tuple(checks))


def _of(name: str, wrong: list[str], right: str) -> BundleCheck:
    """A check that fails with what is wrong, the first few named, or passes with what is right."""
    if not wrong:
        return BundleCheck(name=name, state="pass", detail=right)
    more = f" (and {len(wrong) - NAMES_SHOWN} more)" if len(wrong) > NAMES_SHOWN else ""
    return BundleCheck(name=name, state="fail", detail="; ".join(wrong[:NAMES_SHOWN]) + more)


def _manifest(opened: zipfile.ZipFile) -> tuple[Manifest | None, BundleCheck]:
    try:
        if opened.getinfo(MANIFEST_NAME).file_size > MANIFEST_BYTES_MAX:
            raise CheckError(f"{MANIFEST_NAME} is larger than {MANIFEST_BYTES_MAX // 2**20} MiB")
        manifest = parse_manifest(b"".join(archive.chunks(opened, MANIFEST_NAME)))
    except EdgekdError as error:
        return None, BundleCheck(name="manifest", state="fail", detail=str(error))
    detail = f"schema version {manifest.schema_version}, {len(manifest.files)} files"
    return manifest, BundleCheck(name="manifest", state="pass", detail=detail)


def _files(opened: zipfile.ZipFile, manifest: Manifest) -> Iterator[BundleCheck]:
    present = {entry.filename for entry in opened.infolist()} - {MANIFEST_NAME}
    missing, extra = sorted(manifest.files.keys() - present), sorted(present - manifest.files.keys())
    yield _of("no file missing", [f"'{name}' is missing" for name in missing], f"{len(manifest.files)} listed")
    yield _of("no file added", [f"'{name}' is not in the manifest" for name in extra], "nothing else in the zip")
    changed = [why for name in sorted(present & manifest.files.keys()) if (why := _changed(opened, manifest, name))]
    yield _of("sha256 and size of every file", changed, f"{len(present)} files unchanged")


def _changed(opened: zipfile.ZipFile, manifest: Manifest, name: str) -> str | None:
    entry = manifest.files[name]
    try:
        sha256, size_bytes = archive.digest(opened, name)
    except CheckError as error:
        return str(error)
    if size_bytes != entry.size_bytes:
        return f"'{name}' has {size_bytes:,} bytes, the manifest says {entry.size_bytes:,}"
    return None if sha256 == entry.sha256 else f"'{name}' was changed (sha256 {sha256[:12]}…, not {entry.sha256[:12]}…)"


def _content(opened: zipfile.ZipFile, manifest: Manifest, *, timeout_s: float) -> Iterator[BundleCheck]:
    """What needs the files on disk: labels and preprocessing agree, and every artifact gives its golden logits."""
    with tempfile.TemporaryDirectory(prefix="edgekd-verify-") as folder:
        root = Path(folder) / "bundle"
        archive.unpack(opened, root)
        yield _of(
            "labels and preprocessing", list(_disagreements(root, manifest)), f"{len(manifest.data.classes)} classes"
        )
        yield _normalisation(root, manifest)
        for entry in manifest.artifacts:
            if entry.path is not None:
                yield _parity(root, entry, timeout_s=timeout_s)


def _disagreements(root: Path, manifest: Manifest) -> Iterator[str]:
    labels = root / "labels.txt"
    wanted = "".join(f"{_one_line(name)}\n" for name in manifest.data.classes)
    if not labels.is_file() or labels.read_text(encoding="utf-8") != wanted:
        yield "labels.txt does not list the classes of the manifest"
    preprocessing = root / "preprocessing.json"
    if not preprocessing.is_file() or read_json(preprocessing) != manifest.preprocessing:
        yield "preprocessing.json is not the preprocessing of the manifest"


def _one_line(name: str) -> str:
    return " ".join(name.split())


def _normalisation(root: Path, manifest: Manifest) -> BundleCheck:
    """The shipped inputs are the shipped images, normalised once, as the bundle itself says."""
    name = "parity inputs are normalised images"
    try:
        images, inputs = (load_array(root / FOLDER / f"{array}.npy") for array in (IMAGES, INPUTS))
        error = normalise_error(images, inputs, manifest.preprocessing)
    except (EdgekdError, KeyError, TypeError, ValueError) as mistake:
        return BundleCheck(name=name, state="fail", detail=str(mistake))
    wrong = (
        [] if error <= NORMALISE_ERROR_MAX else [f"they differ by up to {error:.3g} from (pixel / 255 - mean) / std"]
    )
    return _of(name, wrong, f"{len(images)} images")


def _parity(root: Path, entry: BundledArtifact, *, timeout_s: float) -> BundleCheck:
    """One artifact against its golden logits, in its own process."""
    name = f"parity: {entry.name}"
    if str(entry.path).endswith(ENGINE_SUFFIXES):
        return BundleCheck(name=name, state="skipped", detail="a TensorRT engine runs only on the GPU it was built for")
    found = _replayed(root, entry, timeout_s=timeout_s)
    if "missing" in found:
        return BundleCheck(name=name, state="skipped", detail=str(found["missing"]))
    if "broken" in found:
        return BundleCheck(name=name, state="fail", detail=str(found["broken"]))
    allowed = disagreements_allowed(found["n_images"], entry.min_agreement)
    figures = f"{found['snr_db']:.1f} dB, {found['differ']} of {found['n_images']} images differ in top-1"
    asked = f"asked: >= {entry.min_snr_db:g} dB, at most {allowed}"
    wrong = found["snr_db"] < entry.min_snr_db or found["differ"] > allowed
    note = f"; {found['note']}" if found["note"] else ""
    return BundleCheck(name=name, state="fail" if wrong else "pass", detail=f"{figures} ({asked}){note}")


def _replayed(root: Path, entry: BundledArtifact, *, timeout_s: float) -> dict[str, Any]:
    """The child's result document, or {"broken": why} when it left none."""
    from edgekd.export.process import last_lines, run_watched

    with tempfile.TemporaryDirectory(prefix="edgekd-replay-") as folder:
        request, result, log = (Path(folder) / name for name in ("request.json", "result.json", "log.txt"))
        write_json(request, {"root": str(root), "artifact": json.loads(entry.model_dump_json())})
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [*REPLAY_COMMAND, str(request), str(result)]
        end = run_watched(command, log=log, environment=environment, timeout_s=timeout_s, memory_limit_gib=8.0)
        if end.ending == "exit" and result.is_file():
            return dict(read_json(result))
        said = f": {' | '.join(lines)}" if (lines := last_lines(log)) else ""
        return {"broken": f"its runtime {end.describe()}{said}"}
