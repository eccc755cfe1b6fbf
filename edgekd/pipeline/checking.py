"""Stage `check`: every exported artifact against its program, on real test images, in its runtime where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.bundle import write_parity
from edgekd.export.check import CheckReport, check_all
from edgekd.pipeline.context import Context, sample_images
from edgekd.pipeline.exporting import artifact_of

# Accuracy in the runtime is taken on at most this many test images: all of Fashion-MNIST or CIFAR-10.
ACCURACY_IMAGES_MAX = 10_000
PARITY_VECTORS = 32


def check(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: one report per exported artifact, by its folder's name."""
    rows = context.record.result("export")["artifacts"]
    artifacts = [a for row in rows if (a := artifact_of(row, context.folder)) is not None]
    reports = check_artifacts(context, artifacts)
    parity = write_parity_vectors(context)
    return {"reports": {f"{r.target}-{r.precision}": r.model_dump(mode="json") for r in reports}}, parity


def write_parity_vectors(context: Context) -> list[Path]:
    """Images and the logits they must give, for the device to check itself by and for `edgekd verify`."""
    dataset = context.student_dataset
    images, _ = sample_images(dataset, PARITY_VECTORS, seed=context.settings.seed)
    programs = {name: context.program(name) for name in ("float", "int8") if context.program(name).is_file()}
    return write_parity(
        context.folder / "parity", images=images, preprocessing=dataset.preprocessing.to_dict(), programs=programs
    )


def check_artifacts(context: Context, artifacts: list[Artifact]) -> list[CheckReport]:
    """Check, telling each result as it comes."""
    dataset = context.student_dataset
    images, labels = sample_images(dataset, ACCURACY_IMAGES_MAX, seed=context.settings.seed)
    beside_float = any(a.target == "coreml" and a.precision == "int8" for a in artifacts)  # its arithmetic is fp16
    return check_all(
        [(a, context.program("int8" if a.precision == "int8" else "float")) for a in artifacts],
        images,
        labels,
        dataset.preprocessing,
        log_dir=context.folder / "logs",
        on_done=lambda report: context.events.note(sentence(report)),
        parity_images=context.settings.check_images,
        baseline=context.program("float") if beside_float else None,
    )


def sentence(report: CheckReport) -> str:
    """One report as one line."""
    name = f"{report.target} {report.precision}"
    if report.snr_db is None or report.top1_agreement is None:
        return f"{name}: {'; '.join(report.failures) or report.note or 'not executed here'}"
    accuracy = (
        f", top-1 {report.accuracy_top1:.2%} of {report.n_accuracy_images}" if report.accuracy_top1 is not None else ""
    )
    agreement = f"agreement {report.top1_agreement:.2%} of {report.n_images}"
    parity = f"{report.snr_db:.1f} dB, {agreement}{accuracy} ({report.executed})"
    return f"{name}: {'passed' if report.passed else 'FAILED: ' + '; '.join(report.failures)}; {parity}"
