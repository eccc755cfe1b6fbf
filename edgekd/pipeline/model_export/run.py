"""One export from settings to a folder with artifacts, programs, logs and export.json."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd.device_benchmarks.host import cpu_model
from edgekd.errors import InputError
from edgekd.files import read_json, write_json
from edgekd.pipeline.context import versions
from edgekd.pipeline.events import Events, Silent
from edgekd.pipeline.model_export.checking import check
from edgekd.pipeline.model_export.choosing import Choice, choose
from edgekd.pipeline.model_export.converting import convert
from edgekd.pipeline.model_export.inputs import ModelInputs, load_inputs
from edgekd.pipeline.model_export.measuring import Timing, measure
from edgekd.pipeline.model_export.planning import Planned, plan, specs_of
from edgekd.pipeline.model_export.programs import ProgramFacts, Programs, add_int8, build_float, refuse_unknown_layers
from edgekd.pipeline.model_export.proving import Diagnosis, prove
from edgekd.pipeline.model_export.request import ModelExportSettings
from edgekd.pipeline.model_export.result import DataFacts, ExportDocument, ExportRow, ModelFacts, State
from edgekd.pipeline.model_export.training import refuse_untrainable
from edgekd.pipeline.model_export.work import Candidate, Work
from edgekd.pipeline.record import exclusive, next_free
from edgekd.quant import output_names

EXPORTS = Path("exports")
DOCUMENT, KIND = "export.json", "model-export"
STEPS = 6


@dataclass(frozen=True)
class ModelExportResult:
    """An export as it ended. failed: something that was tried did not come out right."""

    folder: Path
    document: ExportDocument

    @property
    def failed(self) -> bool:
        """Whether the command ends with 1."""
        return self.document.failed


def export_model(
    settings: ModelExportSettings, *, out: Path | None = None, events: Events | None = None
) -> ModelExportResult:
    """Load, quantise, convert, check, measure, explain, choose. A target that fails does not stop the others.

    out: default exports/NAME-NNN; a folder that an earlier export wrote is replaced.
    Raises: InputError and others of edgekd.errors: nothing can be exported at all. Nothing is written before the model
        is loaded, traced and quantised.
    """
    listener = events or Silent()
    if out is not None:
        check_out(out)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        listener.stage(1, STEPS, "load the model and the data")
        inputs = load_inputs(settings)
        refuse_unknown_layers(inputs, settings.float_layers)
        refuse_untrainable(inputs, settings)
        planned = plan(settings, inputs.profile, preprocessing=inputs.preprocessing.to_dict())
        for note in inputs.notes:
            listener.note(note)
    with _timed(seconds, "quantise"):
        listener.stage(2, STEPS, "trace and quantise")
        programs = programs_for(inputs, settings, planned, listener)
    with _disk_errors(), _folder(out, inputs.name) as folder:
        # Says whose folder this is, should the process end before the document is whole.
        write_json(folder / DOCUMENT, {"kind": KIND, "unfinished": True})
        programs.save(folder)
        work = Work(settings, inputs, programs, folder, listener, [Candidate(p) for p in planned], seconds)
        document = _export(work)
        write_json(folder / DOCUMENT, document.model_dump(mode="json"))
        _remove_stale(folder, document)
    return ModelExportResult(folder, document)


def programs_for(
    inputs: ModelInputs, settings: ModelExportSettings, planned: tuple[Planned, ...], events: Events
) -> Programs:
    """The float program and every int8 program that the plan needs, in memory."""
    programs = build_float(inputs)
    if specs := specs_of(planned):
        add_int8(programs, inputs, settings, specs, events=events)
    for facts in programs.facts.values():
        if facts.spec is not None and facts.calibration is not None and facts.snr_db is not None:
            done, total = facts.coverage or (0, 0)
            events.note(
                f"{facts.name}: {done} of {total} layers in int8, {facts.snr_db:.1f} dB from float, "
                f"{facts.calibration.n} calibration images{_trained(facts)}"
            )
    return programs


def _trained(facts: ProgramFacts) -> str:
    return f", {facts.qat_epochs:g} epochs of quantisation-aware training" if facts.qat_epochs else ""


def _export(work: Work) -> ExportDocument:
    settings, events = work.settings, work.events
    with _timed(work.seconds, "export"):
        events.stage(3, STEPS, "convert")
        convert(work, work.candidates)
    with _timed(work.seconds, "check"):
        events.stage(4, STEPS, "check")
        check(work, work.candidates)
    timing = Timing(latencies={})
    if settings.measure or settings.auto:
        with _timed(work.seconds, "measure"):
            events.stage(5, STEPS, "measure on this host")
            timing = measure(work, work.candidates)
    diagnoses: list[Diagnosis] = []
    if settings.explain or settings.fix:
        with _timed(work.seconds, "explain"):
            events.stage(6, STEPS, "explain what is under a bar")
            diagnoses, more = prove(work)
        timing = Timing(latencies={**more.latencies, **timing.latencies})
    choices = choose(work.candidates, timing.latencies, max_loss_points=settings.max_loss_points)
    return document_of(work, timing, choices if settings.auto else (), diagnoses)


def document_of(work: Work, timing: Timing, choices: tuple[Choice, ...], diagnoses: list[Diagnosis]) -> ExportDocument:
    """Everything as plain data."""
    inputs, chosen = work.inputs, {choice.label for choice in choices}
    return ExportDocument(
        model=ModelFacts(
            name=inputs.name,
            sha256=inputs.fingerprint,
            parameters=inputs.parameters,
            image_shape=inputs.image_shape,
            outputs=output_names(work.programs.built["float"]),
        ),
        data=DataFacts(
            name=inputs.dataset.name,
            fingerprint=inputs.dataset.fingerprint,
            classes=inputs.dataset.num_classes,
            preprocessing=dict(inputs.preprocessing.to_dict()),
            train_images=len(inputs.dataset.train),
            test_images=len(inputs.dataset.test),
        ),
        settings=work.settings,
        programs=tuple(work.programs.facts.values()),
        rows=tuple(row_of(work, c, timing, chosen=c.label in chosen) for c in work.candidates),
        choices=choices,
        diagnoses=tuple(diagnoses),
        notes=inputs.notes,
        host={"cpu": cpu_model()},
        versions=versions(),
        command=shlex.join(["edgekd", *sys.argv[1:]]),
        seconds={name: round(value, 2) for name, value in work.seconds.items()},
    )


def row_of(work: Work, candidate: Candidate, timing: Timing, *, chosen: bool) -> ExportRow:
    """One candidate as a row, its paths relative to the folder."""
    planned, outcome, report = candidate.planned, candidate.outcome, candidate.check
    artifact = candidate.artifact
    state: State = "not-exported"
    reason = outcome.reason if outcome is not None else ""
    if artifact is not None:
        passed = report is not None and report.passed
        state, reason = ("exported-and-checked", "") if passed else ("check-failed", _why(candidate))
        artifact = artifact.model_copy(update={"path": artifact.path.relative_to(work.folder)})
    facts = work.programs.facts.get(planned.program)
    return ExportRow(
        label=candidate.label,
        target=planned.target,
        precision=planned.precision,
        state=state,
        refused=outcome is not None and outcome.state == "refused",
        reason=reason,
        program=planned.program,
        float_layers=planned.spec.float_layers if planned.spec is not None else (),
        artifact=artifact,
        cached=outcome.cached if outcome is not None else False,
        export_s=outcome.wall_s if outcome is not None else 0.0,
        log=outcome.log if outcome is not None else "",
        check=report,
        latency=timing.latencies.get(candidate.label),
        calibration_sha256=facts.calibration.sha256 if facts is not None and facts.calibration is not None else "",
        chosen=chosen,
    )


def _why(candidate: Candidate) -> str:
    return "; ".join(candidate.check.failures) if candidate.check is not None else "it was not checked"


def check_out(folder: Path) -> None:
    """Raises: InputError: the folder holds something that no export wrote, or is a file."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError("is a file", where=folder, fix="choose another --out")
    if any(folder.iterdir()) and not _is_ours(folder):
        raise InputError("holds other files than an export's", where=folder, fix="choose another --out")


def _is_ours(folder: Path) -> bool:
    """Whether an export wrote this folder; a run's directory has an export.json too."""
    file = folder / DOCUMENT
    document = read_json(file) if file.is_file() else {}
    return isinstance(document, dict) and document.get("kind") == KIND


@contextmanager
def _folder(out: Path | None, name: str) -> Iterator[Path]:
    """The export's folder, held while it is written; one that was made here and stayed empty is removed again."""
    folder = (out or next_free(EXPORTS, re.sub(r"[^\w.-]+", "-", name))).resolve()
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be created ({error.strerror})", where=folder, fix="choose another --out") from error
    try:
        with exclusive(folder):
            yield folder
    finally:
        if made and not any((folder / name).exists() for name in ("programs", "artifacts")):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(folder: Path, document: ExportDocument) -> None:
    """Artifacts of an earlier export into the same folder that this one did not write."""
    kept = {row.label for row in document.rows if row.artifact is not None}
    artifacts = folder / "artifacts"
    for path in artifacts.iterdir() if artifacts.is_dir() else ():
        if path.name not in kept and (path / "artifact.json").is_file():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space; finished conversions are kept in the cache"
            raise InputError("no space left on the disk", where=error.filename, fix=fix) from error
        raise


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[step] = time.monotonic() - started
