"""What the checkups of a run's trainings found, with the failure modes that only show between trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekd.distill.diagnosis import Check, capacity_collapse, chain_degradation
from edgekd.report.transfer import DiagnosisRow

Plain = Mapping[str, Any]


def diagnoses(distil: Plain, quantise: Plain) -> Iterator[DiagnosisRow]:
    """One row for each failure mode and training; the baseline has no teacher and so only its own."""
    accuracy = distil["accuracy"]
    baseline = accuracy["baseline"]["top1"] if "baseline" in accuracy else None
    yield _row("test set", capacity_collapse(accuracy["student"]["top1"], baseline))
    yield _row("recipe", chain_degradation(links(distil)))
    for training in (*distil["earlier"], *distil["trainings"], *quantise["trainings"]):
        for check in training.get("checks", ()):
            if training["name"] != "baseline" or check["state"] == "warning":
                yield _row(training["name"], Check(**check))


def links(distil: Plain) -> list[tuple[str, float, float]]:
    """(name, held-out accuracy, that of the best teacher) of each assistant that a recipe trained."""
    names = {f"distil-{name}": name for row in distil["trainings"] for name in row.get("links", ())}
    found = []
    for training in distil["earlier"]:
        figures = training.get("figures")
        if training["name"] in names and figures and figures["teachers"]:
            best = max(model["accuracy"] for model in figures["teachers"].values())
            found.append((names[training["name"]], figures["student"]["accuracy"], best))
    return found


def _row(where: str, check: Check) -> DiagnosisRow:
    return DiagnosisRow(where=where, **check.to_dict())
