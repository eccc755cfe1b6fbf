"""Write the deployment bundle. The same run gives the same bytes: sorted names, fixed dates, no machine paths."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path, PurePosixPath

from edgekd.bundle import device_run, texts
from edgekd.bundle.manifest import MANIFEST_NAME, BundledArtifact, FileEntry, Manifest, Metrics
from edgekd.bundle.vectors import FOLDER, GOLDEN, IMAGES, INPUTS
from edgekd.errors import CheckError, InputError
from edgekd.export.describe import content_sha256
from edgekd.files import write_whole
from edgekd.report.document import RunReport
from edgekd.report.rows import ArtifactRow

MIN_SNR_DB, MIN_AGREEMENT = 30.0, 0.99
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
REPORT_FILES = ("report.html", "report.json")


def write_bundle(path: Path, *, report: RunReport, run: Path) -> Path:
    """Pack what a device needs into the zip at `path`, whole or not at all.

    `run` holds the artifacts at the report's paths, `parity/` as `write_parity` made it, and the report's two files,
    shipped when they are there. Only artifacts that were exported and checked are shipped; the others are listed.
    Raises: CheckError: no artifact passed its check, or one was changed since. InputError: a file is missing.
    """
    shipped = [row for row in report.artifacts if row.state == "exported-and-checked"]
    if not shipped:
        raise CheckError("no artifact passed its check, so there is nothing to deploy", fix="see the report's reasons")
    files = _texts(report, shipped) | _from_disk(report, shipped, run)
    entries = {name: _entry(source) for name, source in files.items()}
    manifest = _manifest(report, shipped, entries)
    files[MANIFEST_NAME] = (manifest.model_dump_json(indent=1) + "\n").encode()
    return write_whole(path, lambda temporary: _write_zip(temporary, files))


def _texts(report: RunReport, shipped: list[ArtifactRow]) -> dict[str, bytes | Path]:
    """Files made from the report alone."""
    labels = "".join(f"{' '.join(name.split())}\n" for name in report.data.classes)
    found: dict[str, bytes | Path] = {
        "README.md": texts.readme(report, shipped).encode(),
        "MODEL_CARD.md": texts.model_card(report).encode(),
        "LICENSES.md": texts.LICENSES.encode(),
        "labels.txt": labels.encode(),
        "preprocessing.json": (json.dumps(report.preprocessing, indent=1, allow_nan=False) + "\n").encode(),
        "run.py": Path(device_run.__file__).read_bytes(),
    }
    for row in shipped:
        if row.target == "coreml":
            found["COREML.md"] = texts.coreml(report, row).encode()
    return found


def _from_disk(report: RunReport, shipped: list[ArtifactRow], run: Path) -> dict[str, bytes | Path]:
    """Artifacts with everything in their folders, parity vectors, and the report."""
    found: dict[str, bytes | Path] = {}
    for row in shipped:
        _refuse_changed(row, run)
        folder = run / _folder_of(row)
        found.update({file.relative_to(run).as_posix(): file for file in _files_under(folder)})
    needed = {IMAGES, INPUTS} | {GOLDEN + _program(row) for row in shipped}
    for name in sorted(needed):
        for suffix in (".npy", ".bin"):
            file = run / FOLDER / (name + suffix)
            if not file.is_file():
                raise InputError("no such parity vector", where=file, fix="run the check stage again")
            found[f"{FOLDER}/{name}{suffix}"] = file
    found.update({name: run / name for name in REPORT_FILES if (run / name).is_file()})
    return found


def _program(row: ArtifactRow) -> str:
    return row.program or ("int8" if row.precision == "int8" else "float")


def _folder_of(row: ArtifactRow) -> PurePosixPath:
    """`artifacts/NAME` of an artifact. Raises: InputError: its path lies elsewhere."""
    parts = PurePosixPath(row.path or "").parts
    if len(parts) < 2 or parts[0] != "artifacts" or ".." in parts:
        raise InputError(f"artifact '{row.name}' lies at {row.path!r}", fix="expected artifacts/TARGET-PRECISION/...")
    return PurePosixPath(*parts[:2])


def _files_under(folder: Path) -> list[Path]:
    """Regular files, sorted. Raises: InputError: the folder is missing, or holds a link."""
    if not folder.is_dir():
        raise InputError("no such artifact", where=folder, fix="export again")
    for file in (files := sorted(folder.rglob("*"))):
        if file.is_symlink():
            raise InputError("a link cannot be bundled", where=file, fix="export again")
    return [file for file in files if file.is_file()]


def _refuse_changed(row: ArtifactRow, run: Path) -> None:
    """What ships is what was checked."""
    path = run / str(row.path)
    _folder_of(row)
    if not path.exists():
        raise InputError("no such artifact", where=path, fix="export again")
    if row.sha256 is not None and content_sha256(path) != row.sha256:
        raise CheckError(f"artifact '{row.name}' was changed after its check", where=path, fix="export and check again")


def _manifest(report: RunReport, shipped: list[ArtifactRow], files: dict[str, FileEntry]) -> Manifest:
    measurements = tuple(row.model_copy(update={"samples_ms": ()}) for row in report.measurements)
    return Manifest(
        title=report.title,
        created=report.created,
        command=report.command,
        seed=report.seed,
        profile=report.profile,
        teacher=report.teacher,
        data=report.data,
        student=report.student,
        preprocessing=report.preprocessing,
        artifacts=tuple(_bundled(row, ships=row in shipped) for row in report.artifacts),
        metrics=Metrics(
            accuracies=report.accuracies,
            measurements=measurements,
            ratios=report.ratios,
            predicted=report.predicted,
            gates=report.gates,
        ),
        host=report.host,
        versions=report.versions,
        warnings=report.warnings,
        files=files,
    )


def _bundled(row: ArtifactRow, *, ships: bool) -> BundledArtifact:
    check = row.check
    failures = "; ".join(check.failures) if check else ""
    return BundledArtifact(
        name=row.name,
        target=row.target,
        precision=row.precision,
        state=row.state,
        path=row.path if ships else None,
        golden=f"{FOLDER}/{GOLDEN}{_program(row)}.npy" if ships else None,
        min_snr_db=MIN_SNR_DB if check is None or check.min_snr_db is None else check.min_snr_db,
        min_agreement=MIN_AGREEMENT if check is None or check.min_agreement is None else check.min_agreement,
        inputs=row.inputs,
        outputs=row.outputs,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        check=check,
        reason=row.reason or failures,
        notes=row.notes,
    )


def _entry(source: bytes | Path) -> FileEntry:
    data = source if isinstance(source, bytes) else source.read_bytes()
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _write_zip(path: Path, files: dict[str, bytes | Path]) -> None:
    """README and manifest first, then by name."""
    first = ("README.md", MANIFEST_NAME)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files, key=lambda n: (first.index(n) if n in first else len(first), n)):
            source = files[name]
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if name.endswith((".sh", "run.py")) else 0o100644) << 16
            archive.writestr(entry, source if isinstance(source, bytes) else source.read_bytes())
