"""The HTML report: one self-contained page, no script, no network, every text escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.files import write_text
from edgekd.report import headline
from edgekd.report.document import GateState, RunReport, save
from edgekd.report.rows import ArtifactRow

if TYPE_CHECKING:
    from jinja2 import Environment

HTML_NAME, JSON_NAME = "report.html", "report.json"
DASH = "—"
QUANTITIES = {
    "latency_p50_ms": ("latency p50", "ms"),
    "latency_p90_ms": ("latency p90", "ms"),
    "peak_memory_mib": ("peak memory", "MiB"),
    "artifact_size_mib": ("artifact size", "MiB"),
    "energy_mj": ("energy at the power limit", "mJ"),
}


def write_report(run_dir: Path, report: RunReport) -> tuple[Path, Path]:
    """`report.html` and `report.json` in the run folder, each whole or absent; returns both paths."""
    return write_text(run_dir / HTML_NAME, render(report)), save(report, run_dir / JSON_NAME)


def render(report: RunReport) -> str:
    """The page as text. The same report gives the same bytes.

    Names of data, teachers, devices and files are untrusted: the template escapes all of them, charts included.
    """
    state, sentence = headline.verdict(report)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict_state=state,
            verdict_text=sentence,
            figures=headline.figures(report),
            charts=_charts(report),
            quantities=QUANTITIES,
            artifact_state=artifact_state,
            speed_counts=headline.speed_counts,
            comparisons=headline.comparisons(report),
        )
    )


def _charts(report: RunReport) -> dict[str, object]:
    """Chart name to `<svg>` marked safe (matplotlib escapes its texts), or to None where there is nothing to draw."""
    from markupsafe import Markup

    from edgekd.report import charts

    found = {
        "scatter": charts.accuracy_against_latency(report),
        "candidates": charts.candidates(report),
        "front": charts.front(report),
        "strips": charts.latency_strips(report),
        "ecdf": charts.latency_ecdf(report),
        "validation": charts.validation_accuracy(report.trainings),
    }
    safe: dict[str, object] = {name: None if svg is None else Markup(svg) for name, svg in found.items()}
    labels = charts.TRAINING_LABELS
    losses = [(training, charts.training_losses(training)) for training in report.trainings]
    safe["losses"] = [(training, labels[training.name], Markup(svg)) for training, svg in losses if svg]
    return safe


def artifact_state(row: ArtifactRow) -> tuple[GateState, str]:
    """How an artifact's state is shown; one that never ran in its own runtime is not shown as proven."""
    if row.state == "not-exported":
        return "fail", "not exported"
    if row.state == "exported-check-failed":
        return "fail", "exported, check failed"
    if row.check is None or not row.check.executed:
        return "unverified", "exported, not run here"
    return "pass", "exported and checked"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgekd.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        number=number,
        count=count,
        size=lambda value: DASH if value is None else headline.size_text(value),
        duration=duration,
        flat=flat,
    )
    return environment


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as a percentage.

    >>> percent(0.93071), percent(None)
    ('93.07%', '—')
    """
    return DASH if fraction is None else f"{fraction:.{digits}%}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponent form for everyday sizes.

    >>> number(0.41234), number(243.91), number(12345.6), number(None)
    ('0.412', '244', '12,346', '—')
    """
    if value is None:
        return DASH
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    text = f"{value:#.{digits}g}"
    return text.rstrip(".") if "e" not in text else f"{value:g}"


def count(value: int | None) -> str:
    """A count with a short unit.

    >>> count(2_480_000), count(61_354), count(900)
    ('2.48 M', '61.4 k', '900')
    """
    if value is None:
        return DASH
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> duration(74.94), duration(231), duration(0.4)
    ('1 min 15 s', '3 min 51 s', '0.4 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def flat(value: object) -> str:
    """Plain JSON as one short line, for a table cell.

    >>> flat({"T": 4.0, "weights": {"kl": 0.7}}), flat([0.5, 1])
    ('T 4, weights (kl 0.7)', '0.5, 1')
    """
    if isinstance(value, dict):
        return ", ".join(
            f"{key} ({flat(v)})" if isinstance(v, dict) else f"{key} {flat(v)}" for key, v in value.items()
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(f"({flat(v)})" if isinstance(v, (dict, list, tuple)) else flat(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
