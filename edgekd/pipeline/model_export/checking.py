"""Check every artifact on test images: parity with its program, accuracy against the float model, int8 evidence."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.export.check import CheckBars, CheckReport, bars_for, check_all
from edgekd.export.check_report import INT8_MACS_SHARE
from edgekd.pipeline.context import sample_images
from edgekd.pipeline.model_export.work import Candidate, Work


def check(work: Work, candidates: Sequence[Candidate]) -> None:
    """Fill in the report of every candidate that was exported."""
    exported = [(c, c.artifact) for c in candidates if c.artifact is not None]
    if not exported:
        return
    n = max(work.settings.test_images, work.settings.check_images) if work.inputs.labelled else 0
    images, labels = sample_images(work.inputs.dataset, n or work.settings.check_images, seed=work.settings.seed)
    reports = check_all(
        [(artifact, work.program_path(c.planned.program)) for c, artifact in exported],
        images,
        labels if work.inputs.labelled else None,
        work.inputs.preprocessing,
        log_dir=work.folder / "logs",
        on_done=lambda report: work.events.note(sentence(report)),
        parity_images=work.settings.check_images,
        bars=[bars_of(work, c) for c, _ in exported],
        baseline=work.float_program,
    )
    for (candidate, _), report in zip(exported, reports, strict=True):
        candidate.check = report


def bars_of(work: Work, candidate: Candidate) -> CheckBars | None:
    """The precision's own bars; where layers were left float on purpose, the program's int8 share is what must run."""
    spec = candidate.planned.spec
    if spec is None or not spec.float_layers:
        return None
    share = work.programs.facts[candidate.planned.program].int8_macs_share
    least = INT8_MACS_SHARE * (share if share is not None else 1.0)
    return bars_for("int8").model_copy(update={"int8_macs_share": least})


def sentence(report: CheckReport) -> str:
    """One report as one line."""
    name = f"{report.target} {report.precision}"
    if report.snr_db is None:
        return f"{name}: {'; '.join(report.failures) or report.note or 'not executed here'}"
    parts = [f"{report.snr_db:.1f} dB"]
    if report.top1_agreement is not None:
        parts.append(f"agreement {report.top1_agreement:.2%} of {report.n_images} {report.agreement_over}")
    if report.paired is not None:
        loss = report.paired
        parts.append(f"top-1 {report.accuracy_top1:.2%}, {0 - loss.loss_points:+.2f} points (p {loss.p_value:.2g})")
    verdict = "passed" if report.passed else "FAILED: " + "; ".join(report.failures)
    return f"{name}: {verdict}; {', '.join(parts)} ({report.executed})"
