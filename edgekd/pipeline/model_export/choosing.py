"""`--precision auto`: per target, the fastest artifact whose checks pass and whose accuracy holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekd.artifact import Frozen
from edgekd.pipeline.model_export.measuring import Latency
from edgekd.pipeline.model_export.work import Candidate


class Considered(Frozen):
    """One artifact that was tried for a target. why_not: why it cannot be chosen, or ""."""

    label: str
    p50_ms: float | None
    loss_points: float | None
    size_bytes: int | None
    why_not: str = ""


class Choice(Frozen):
    """What was chosen for a target, why, and everything it was chosen from. label: "" where nothing can be."""

    target: str
    label: str
    why: str
    considered: tuple[Considered, ...]


def choose(
    candidates: Sequence[Candidate], latencies: Mapping[str, Latency], *, max_loss_points: float
) -> tuple[Choice, ...]:
    """One choice per target, in the candidates' order."""
    targets = dict.fromkeys(c.planned.target for c in candidates)
    return tuple(
        _choice(target, [_consider(c, latencies, max_loss_points) for c in candidates if c.planned.target == target])
        for target in targets
    )


def _consider(candidate: Candidate, latencies: Mapping[str, Latency], max_loss_points: float) -> Considered:
    report, latency = candidate.check, latencies.get(candidate.label)
    loss = report.paired.loss_points if report is not None and report.paired is not None else None
    return Considered(
        label=candidate.label,
        p50_ms=latency.p50_ms if latency is not None else None,
        loss_points=loss,
        size_bytes=candidate.artifact.size_bytes if candidate.artifact is not None else None,
        why_not=_why_not(candidate, loss, max_loss_points),
    )


def _why_not(candidate: Candidate, loss: float | None, max_loss_points: float) -> str:
    if candidate.artifact is None:
        return candidate.outcome.reason if candidate.outcome is not None else "not exported"
    if candidate.check is None or not candidate.check.passed:
        failures = candidate.check.failures if candidate.check is not None else ()
        return "; ".join(failures) or "not checked"
    if loss is not None and loss > max_loss_points:
        return f"loses {loss:.2f} points, more than {max_loss_points:g}"
    return ""


def _choice(target: str, considered: list[Considered]) -> Choice:
    possible = [c for c in considered if not c.why_not]
    if not possible:
        return Choice(target=target, label="", why="nothing passed", considered=tuple(considered))
    timed = [c for c in possible if c.p50_ms is not None]
    if timed:
        best = min(timed, key=lambda c: c.p50_ms or 0.0)
        why = f"fastest here of {len(timed)} measured: {best.p50_ms:.3f} ms"
    else:
        best = min(possible, key=lambda c: c.size_bytes or 0)
        why = f"smallest of {len(possible)} that passed; this host cannot time {target}, so measure on the device"
    return Choice(target=target, label=best.label, why=why, considered=tuple(considered))
