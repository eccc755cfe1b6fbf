"""Inline SVG charts of a run. Matplotlib's svg backend, no fonts, no network, the same bytes for the same run.

Colours are drawn as stand-ins and then replaced by CSS variables, so one chart serves the light and the dark page.
Filled marks are measured, hollow marks are predicted, everywhere.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from edgekd.report.document import Accuracy, RunReport, Training
from edgekd.report.rows import MeasurementRow

# Stand-in -> CSS. Any colour not in this table would not follow the page's theme.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
TEACHER, STUDENT, OTHER = SERIES[1], SERIES[0], SERIES[4]
_CSS = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
_CSS |= {colour: f"--series-{i + 1}" for i, colour in enumerate(SERIES)}

TRAINING_LABELS = {"distil": "distilled", "baseline": "without teacher", "quantise": "quantisation-aware"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and drawn with the page's own font
    "svg.hashsalt": "edgekd",
    "text.parse_math": False,  # a '$' in a name is a '$'
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(name: str, plot: Callable[[Figure], None], *, width_in: float = 5.5, height_in: float = 3.3) -> str:
    """An `<svg>` element. `name` prefixes every id, so that several charts can share one page."""
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's own font lacks is drawn by the browser's
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        plot(figure)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata=metadata)  # lays out twice: ticks change with the room they get
    return themed(buffer.getvalue(), name)


def themed(svg: str, name: str) -> str:
    """Only the `<svg>` element, its ids prefixed and its stand-in colours replaced by CSS variables.

    >>> themed('<?xml?><svg width="9pt" height="9pt" id="a"><g style="fill: #010101"/></svg>', "c")
    '<svg class="chart" role="img" id="c-a"><g style="fill: var(--ink)"/></svg>'
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg class="chart" role="img"', 1)


def accuracy_against_latency(report: RunReport) -> str | None:
    """Test top-1 against median latency: measured points with intervals, the prediction for the device hollow."""
    points = [(row, found) for row in report.measurements if (found := _accuracy_of(report, row)) is not None]
    estimate = next((p for p in report.predicted if p.quantity == "latency_p50_ms" and p.what == "student"), None)
    student = report.accuracy("quantised") or report.accuracy("student")
    if not points:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for row, found in points:
            _measured_point(axes, row, found)
        if estimate is not None and student is not None and estimate.lo > 0:
            y = 100 * student.top1
            span = [[estimate.value - estimate.lo], [estimate.hi - estimate.value]]
            axes.errorbar([estimate.value], [y], xerr=span, fmt="none", ecolor=OTHER, elinewidth=1.2, linestyle="none")
            axes.plot([estimate.value], [y], "D", mfc=PAPER, mec=OTHER, mew=1.6, ms=8, zorder=4)
        axes.axvline(report.profile.budgets.latency_p90_ms, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(*_room([100 * found.lo for _, found in points], [100 * found.hi for _, found in points]))
        axes.margins(x=0.12)
        _plain_log(axes)
        axes.set_xlabel("latency p50, ms (log; left is faster)")
        axes.set_ylabel("test top-1, %")
        _legend(figure, report, predicted=estimate is not None)

    return draw("scatter", plot, height_in=3.7)


def _accuracy_of(report: RunReport, row: MeasurementRow) -> Accuracy | None:
    """The accuracy of what was timed: of the same artifact, else of the same player in its training framework."""
    if row.artifact:
        own = next((a for a in report.accuracies if a.artifact == row.artifact and a.split == "test"), None)
        if own is not None:
            return own
    if row.role == "teacher":
        return report.accuracy("teacher")
    if row.role == "student":
        return (report.accuracy("quantised") if row.precision == "int8" else None) or report.accuracy("student")
    return None


def _measured_point(axes: Any, row: MeasurementRow, found: Accuracy) -> None:
    colour = TEACHER if row.role == "teacher" else STUDENT if row.role == "student" else OTHER
    marker = {"fp32": "o", "fp16": "^", "int8": "s"}[row.precision]
    y, low, high = 100 * found.top1, 100 * (found.top1 - found.lo), 100 * (found.hi - found.top1)
    axes.errorbar([row.p50_ms], [y], yerr=[[max(low, 0)], [max(high, 0)]], fmt="none", ecolor=colour, elinewidth=1)
    axes.plot([row.p50_ms], [y], marker, mfc=colour, mec=PAPER, mew=1, ms=8, zorder=4)


def _legend(figure: Any, report: RunReport, *, predicted: bool) -> None:
    from matplotlib.lines import Line2D

    def key(marker: str, face: str, edge: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, mfc=face, mec=edge, mew=1.4, ms=7, label=label)

    used = {(row.role, row.precision) for row in report.measurements}
    keys = [
        key({"fp32": "o", "fp16": "^", "int8": "s"}[p], c, c, f"{role} {p}, measured")
        for role, c in (("teacher", TEACHER), ("student", STUDENT))
        for p in ("fp32", "fp16", "int8")
        if (role, p) in used
    ]
    if predicted:
        keys.append(key("D", PAPER, OTHER, f"student on {_short(report.profile.name)}, predicted"))
    budget = Line2D(
        [], [], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="latency budget of the profile (p90)"
    )
    figure.legend(handles=[*keys, budget], loc="outside upper left", ncols=2, handletextpad=0.4, columnspacing=1.4)


def _room(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    low, high = min(lows), max(highs)
    pad = max(0.15 * (high - low), 0.3)
    return low - pad, min(high + pad, 100.5) if high < 100 else 101.0


def front(report: RunReport) -> str | None:
    """The Pareto front: capacity against predicted latency, and the candidates below it."""
    rows = report.candidates
    if not any(row.on_front for row in rows):
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        others = [row for row in rows if not row.on_front]
        best = sorted((row for row in rows if row.on_front), key=lambda row: row.latency_p50_ms)
        xs, ys = [row.latency_p50_ms for row in best], [row.score for row in best]
        axes.plot([r.latency_p50_ms for r in others], [r.score for r in others], "o", mfc=PAPER, mec=MUTED, ms=4.5)
        axes.step(xs, ys, where="post", color=SERIES[0], linewidth=1.2, alpha=0.7)
        axes.plot(xs, ys, "o", mfc=PAPER, mec=SERIES[0], mew=1.2, ms=5.5, label="no student found is faster and larger")
        for row in (row for row in rows if row.chosen):
            axes.plot([row.latency_p50_ms], [row.score], "D", mfc=PAPER, mec=OTHER, mew=2.0, ms=9, label="chosen")
        axes.set_xlabel(f"predicted latency p50 on {_short(report.profile.name)}, ms")
        axes.set_ylabel("capacity (a prior, no accuracy)")
        _plain_log(axes)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.4)

    return draw("front", plot, height_in=3.7)


def candidates(report: RunReport) -> str | None:
    """Every student the search looked at: multiply-adds against predicted latency; the chosen one stands out."""
    rows = report.candidates
    if not rows:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        for fits, label in ((False, "over a budget"), (True, "within the budgets")):
            some = [row for row in rows if row.fits == fits and not row.chosen]
            xs, ys = [row.latency_p50_ms for row in some], [row.macs / 1e6 for row in some]
            edge = SERIES[0] if fits else MUTED
            axes.plot(xs, ys, "o", mfc=PAPER, mec=edge, mew=1.2, ms=5.5, alpha=0.95 if fits else 0.55, label=label)
        for row in (row for row in rows if row.chosen):
            x, y = row.latency_p50_ms, row.macs / 1e6
            if row.latency_lo_ms is not None and row.latency_hi_ms is not None:
                axes.plot([row.latency_lo_ms, row.latency_hi_ms], [y, y], color=OTHER, linewidth=1.4, zorder=3)
            axes.plot([x], [y], "D", mfc=PAPER, mec=OTHER, mew=2.0, ms=9, zorder=4, label="chosen, with its interval")
        axes.set_xlabel(f"predicted latency p50 on {_short(report.profile.name)}, ms")
        axes.set_ylabel("million multiply-adds")
        _plain_log(axes)
        _plain_log(axes, "y")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.4)

    return draw("candidates", plot, height_in=3.7)


def training_losses(training: Training) -> str | None:
    """Mean loss by term and epoch of one training."""
    terms = sorted({term for epoch in training.epochs for term in epoch.losses}, key=lambda t: (t != "total", t))
    if not terms:
        return None
    if len(terms) == 2:  # a total of one term is that term
        terms = [term for term in terms if term != "total"]

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for i, term in enumerate(terms):
            points = [(epoch.epoch, epoch.losses[term]) for epoch in training.epochs if term in epoch.losses]
            style: Mapping[str, Any] = {"color": INK, "linewidth": 2.0} if term == "total" else {"color": _series(i)}
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=_short(term.replace("_", " ")), **style)
        _epoch_axis(axes, training)
        axes.set_ylabel("mean loss")
        axes.set_ylim(bottom=0 if min(min(e.losses.values()) for e in training.epochs if e.losses) >= 0 else None)
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.2)

    return draw(f"loss-{training.name}", plot)


def validation_accuracy(trainings: Sequence[Training]) -> str | None:
    """Validation top-1 by epoch, one line per training: the student with its teacher against the student alone."""
    shown = [(t, [(e.epoch, 100 * e.val_top1) for e in t.epochs if e.val_top1 is not None]) for t in trainings]
    shown = [(training, points) for training, points in shown if points]
    if not shown:
        return None
    styles = {"distil": (SERIES[0], "-"), "baseline": (SERIES[3], "--"), "quantise": (SERIES[4], "-")}

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for training, points in shown:
            colour, line = styles[training.name]
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=line,
                marker="o",
                ms=3.5,
                label=TRAINING_LABELS[training.name],
            )
        _epoch_axis(axes, max((t for t, _ in shown), key=lambda t: len(t.epochs)))
        axes.set_ylabel("validation top-1, %")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.4)

    return draw("val", plot)


def _epoch_axis(axes: Any, training: Training) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(10, max(1, len(training.epochs)))))


def latency_strips(report: RunReport) -> str | None:
    """Every kept sample of every measurement on one log axis, with p50 and p90."""
    rows = [row for row in report.measurements if row.samples_ms]
    if not rows:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        spread = np.random.default_rng(0)
        for y, row in enumerate(reversed(rows)):
            colour = TEACHER if row.role == "teacher" else STUDENT if row.role == "student" else OTHER
            jitter = y + spread.uniform(-0.2, 0.2, len(row.samples_ms))
            axes.plot(row.samples_ms, jitter, ".", color=colour, ms=3, alpha=0.35, mew=0)
            axes.plot([row.p50_ms] * 2, [y - 0.34, y + 0.34], color=INK, linewidth=2)
            if row.p90_ms is not None:
                axes.plot([row.p90_ms] * 2, [y - 0.26, y + 0.26], color=INK, linewidth=1.2, linestyle=(0, (2, 1.5)))
        axes.set_yticks(range(len(rows)), [_label(row) for row in reversed(rows)])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("latency, ms (log)")
        _plain_log(axes)

    return draw("strips", plot, height_in=1.1 + 0.5 * len(rows))


def latency_ecdf(report: RunReport) -> str | None:
    """The share of inferences that were at most so many times the row's median: spread and tail, whatever the speed."""
    rows = [row for row in report.measurements if len(row.samples_ms) >= 10]
    if not rows:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for i, row in enumerate(rows):
            x = np.sort(np.asarray(row.samples_ms)) / np.median(row.samples_ms)
            axes.step(
                x, 100 * np.arange(1, len(x) + 1) / len(x), where="post", color=_series(i), label=_label(row, "; ")
            )
        axes.set_xlabel("latency / the row's own p50")
        axes.set_ylabel("inferences, %")
        axes.set_ylim(0, 101)
        tail = max(float(np.quantile(row.samples_ms, 0.99)) / row.p50_ms for row in rows)
        axes.set_xlim(0.9, max(1.1, min(tail, 4.0)) + 0.02)
        columns = 1 if max(len(_label(row, "; ")) for row in rows) > 34 else 2
        figure.legend(loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.2)

    return draw("ecdf", plot, height_in=3.7)


def _label(row: MeasurementRow, separator: str = "\n") -> str:
    return f"{_short(row.name)}{separator}{_short(row.runtime)}"


def _short(text: str, most: int = 30) -> str:
    """Text that fits a chart.

    >>> _short("x" * 40)[-2:], _short("tflite")
    ('x…', 'tflite')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _series(i: int) -> str:
    return SERIES[i % len(SERIES)]


def _plain_log(axes: Any, which: str = "x") -> None:
    """Ticks as plain numbers at 1, 2 and 5 of each decade (and more where less than a decade is shown)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if low > 0 else 1.0
    subs = (1.0,) if decades > 4 else (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
