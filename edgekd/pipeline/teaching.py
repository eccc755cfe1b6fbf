"""One training of the core inside a run: where its checkpoints lie, how it tells its progress, what of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edgekd.distill import EpochRecord, Progress, Stage, last_path, run_stage
from edgekd.distill.track_mlflow import mlflow_tracker
from edgekd.distill.track_tensorboard import tensorboard_tracker
from edgekd.pipeline.context import Context


def teach(context: Context, stage: Stage) -> dict[str, Any]:
    """Run a stage, going on from its own checkpoint when one is there. Result: history by epoch, steps, seconds."""
    folder = context.folder / "training" / stage.name
    trackers = _trackers(context)

    def tell(progress: Progress) -> None:
        for tracker in trackers:
            tracker(progress)
        context.events.progress(stage.name, progress.step, progress.total_steps, detail(progress))
        if progress.epoch_record is not None:
            context.events.note(epoch_line(progress.epoch_record))
        for warning in progress.warnings:
            context.events.note(f"warning: {warning.line}")

    result = run_stage(stage, out=folder, resume=last_path(folder).exists(), on_progress=tell)
    return {
        "name": stage.name,
        "epochs": [epoch_row(record) for record in result.history],
        "seconds": result.seconds,
        "steps": result.steps,
        "precision": result.precision,
        "device": result.device,
        "processes": result.processes,
        "images_per_s": result.images_per_s,
        "checks": [check.to_dict() for check in result.checks],
        "figures": None if result.figures is None else asdict(result.figures),
    }


def _trackers(context: Context) -> list[Callable[[Progress], None]]:
    """Who else is told, as the settings name them. Raises: InputError: one is not installed."""
    makers = {
        "tensorboard": lambda: tensorboard_tracker(context.folder / "tensorboard"),
        "mlflow": lambda: mlflow_tracker(context.folder.name),
    }
    return [makers[name]() for name in context.settings.track]


def epoch_row(record: EpochRecord) -> dict[str, Any]:
    """An epoch under the report's names."""
    return {
        "epoch": record.epoch,
        "losses": record.losses,
        "val_top1": record.val_accuracy,
        "images_per_s": record.images_per_s,
        "learning_rate": record.learning_rate,
    }


def epoch_line(record: EpochRecord) -> str:
    """An epoch as one line."""
    losses = ", ".join(f"{term} {value:.3f}" for term, value in record.losses.items())
    return (
        f"epoch {record.epoch}: {losses}; held-out top-1 {record.val_accuracy:.2%}; {record.images_per_s:.0f} images/s"
    )


def detail(progress: Progress) -> str:
    """Throughput and time left."""
    return f"{progress.images_per_s:.0f} images/s, {progress.eta_s:.0f} s left"
