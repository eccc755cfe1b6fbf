"""Convert every wanted artifact; one that cannot be made becomes a row with its reason, and the others go on."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.export import ExportOutcome, ExportRequest, export_all
from edgekd.export.cache import default_cache
from edgekd.pipeline.model_export.planning import Planned
from edgekd.pipeline.model_export.work import Candidate, Work


def request_for(work: Work, planned: Planned) -> ExportRequest:
    """One conversion."""
    return ExportRequest(
        target=planned.target,
        precision=planned.precision,
        program=work.program_path(planned.program),
        out=work.folder / "artifacts" / planned.label,
        profile=work.inputs.profile,
        labels=work.inputs.dataset.classes if work.inputs.labelled else (),
        preprocessing=work.inputs.preprocessing.to_dict(),
        io_dtype=work.settings.io_dtype,
        input_layout=work.settings.input_layout,
        fold_preprocessing=work.settings.fold_preprocessing,
    )


def convert(work: Work, candidates: Sequence[Candidate]) -> None:
    """Fill in the outcome of every candidate."""
    wanted = [c for c in candidates if not c.planned.reason]
    for candidate in candidates:
        if candidate.planned.reason:
            candidate.outcome = _refused(candidate.planned)

    def tell(outcome: ExportOutcome) -> None:
        size = f"{outcome.artifact.size_bytes / 1024:.0f} KiB" if outcome.artifact else outcome.reason
        how = "from the cache" if outcome.cached else f"{outcome.wall_s:.0f} s"
        work.events.note(f"{outcome.target} {outcome.precision}: {outcome.state}, {size} ({how})")

    outcomes = export_all(
        [request_for(work, c.planned) for c in wanted],
        work.folder / "logs",
        work.settings.jobs,
        on_done=tell,
        cache=default_cache() if work.settings.cache else None,
    )
    for candidate, outcome in zip(wanted, outcomes, strict=True):
        candidate.outcome = outcome


def _refused(planned: Planned) -> ExportOutcome:
    return ExportOutcome(target=planned.target, precision=planned.precision, state="refused", reason=planned.reason)
