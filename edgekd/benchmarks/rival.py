"""A student that was chosen and a well-known network of equal measured latency, taught alike: which is more accurate?

The rival's width is found by measuring: both as fp32 files of one runtime on this host, interleaved, until the two
take the same time. Then both are taught by `methods.py`, with settings that `tuning.py` finds for each.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgekd.artifact import Artifact
from edgekd.benchmarks.methods_page import summary
from edgekd.data.dataset import Dataset
from edgekd.device_benchmarks.contender import of_artifact
from edgekd.device_benchmarks.measure import measure_all
from edgekd.device_benchmarks.measurement import PairedRatio
from edgekd.errors import InputError
from edgekd.files import read_json, write_json
from edgekd.pipeline.for_device import exported_float
from edgekd.students import AnySpec, build
from edgekd.teachers import architectures

STUDENT, RIVAL = "student", "rival"
STEP = 0.05  # of the width; channels come in multiples of 8 anyway
NARROWEST, WIDEST = 1, 100  # in steps
PROCESSES = 5  # of the final measurement
Tell = Callable[[str], None]
MeasureAt = Callable[[float], PairedRatio]


@dataclass(frozen=True)
class Rival:
    """A torchvision network that comes in any width. stem_stride: of its first convolution; None leaves its own."""

    name: str
    stem_stride: int | None = None

    def named(self, width: float) -> str:
        """As a table shows it."""
        stem = "" if self.stem_stride is None else f", stem stride {self.stem_stride}"
        return f"{self.name}@{width:g}{stem}"

    def built(self, width: float, dataset: Dataset) -> nn.Module:
        """Raises: InputError: no such network, or none with a width."""
        own = dataset.preprocessing
        module = architectures.build(
            f"{self.name}@{width:g}",
            num_classes=dataset.num_classes,
            in_channels=own.channels,
            image_size=own.image_size,
        )
        stem = architectures.first_convolution(module)
        if self.stem_stride is not None and stem is not None:
            stem[1].stride = (self.stem_stride, self.stem_stride)
        return module


def spec_fits(spec: AnySpec, dataset: Dataset, where: Path) -> None:
    """Raises: InputError: the student is for other images or classes than the data's."""
    own = dataset.preprocessing
    theirs = (spec.in_channels, spec.image_size, spec.num_classes)
    ours = (own.channels, own.image_size, dataset.num_classes)
    if theirs != ours:
        what = f"the student is for {theirs} (channels, px, classes), the data is of {ours}"
        raise InputError(what, where=where, fix="give the run's own data")


def scaled(rival: Rival, spec: AnySpec, dataset: Dataset, *, runtime: str, out: Path, tell: Tell) -> dict[str, Any]:
    """The width at which the rival takes as long as the student here, and the ratio measured anew at that width.

    Kept in `out/rival.json`: the same question is answered from there. Raises: InputError: the kept answer is to
    another question; or even the narrowest is slower, or the widest faster.
    """
    file = out / "rival.json"
    asked = {
        "rival": rival.name,
        "stem_stride": rival.stem_stride,
        "spec": spec.model_dump(mode="json"),
        "runtime": runtime,
        "image_size": dataset.preprocessing.image_size,
    }
    if file.is_file():
        kept: dict[str, Any] = read_json(file)
        if any(kept.get(key) != value for key, value in asked.items()):
            raise InputError("it holds another student or rival", where=out, fix="name another --out")
        return kept
    with tempfile.TemporaryDirectory(prefix="edgekd-rival-") as folder:
        pair = _SideBySide(rival, spec, dataset, runtime, Path(folder))

        def quick(width: float) -> PairedRatio:
            found = pair.measured(width)
            tell(f"width {width:g}: the rival takes {_ratio(found):.2f}x the student's time")
            return found

        width = width_of_equal_latency(quick)
        found = pair.measured(width, processes=PROCESSES)
    answer = {**asked, "width": width, "rival_over_student": _figures(found), "text": found.text}
    write_json(file, answer)
    return answer


def width_of_equal_latency(measure: MeasureAt) -> float:
    """The width whose measured latency is nearest the student's, by halving the range of steps.

    measure: width -> the rival's latency over the student's. Raises: InputError: out of reach.
    """
    ratios: dict[int, float] = {}

    def at(step: int) -> float:
        if step not in ratios:
            ratios[step] = _ratio(measure(step * STEP))
        return ratios[step]

    low, high = NARROWEST, WIDEST
    if at(low) > 1:
        raise InputError(f"even at width {low * STEP:g} the rival takes {at(low):.2f}x the student's time", where=RIVAL)
    step = round(1 / STEP)
    while high - low > 1:
        low, high = (step, high) if at(step) <= 1 else (low, step)
        step = (low + high) // 2
    if high == WIDEST and WIDEST not in ratios:
        raise InputError(f"even at width {low * STEP:g} the rival takes {at(low):.2f}x the student's time", where=RIVAL)
    return min(ratios, key=lambda step: abs(math.log(ratios[step]))) * STEP


class _SideBySide:
    """The two networks as files of one runtime; each width is exported once."""

    def __init__(self, rival: Rival, spec: AnySpec, dataset: Dataset, runtime: str, folder: Path) -> None:
        self._rival, self._dataset, self._runtime, self._folder = rival, dataset, runtime, folder
        self._student = self._exported(STUDENT, build(spec))
        self._rivals: dict[float, Artifact] = {}

    def measured(self, width: float, *, processes: int | None = None) -> PairedRatio:
        """Speed of the student over the rival of a width, which is the rival's time over the student's."""
        if width not in self._rivals:
            self._rivals[width] = self._exported(f"{RIVAL}-{width:g}", self._rival.built(width, self._dataset))
        contenders = [of_artifact(self._student, name=STUDENT), of_artifact(self._rivals[width], name=RIVAL)]
        found = measure_all(contenders, pairs=[(RIVAL, STUDENT)], processes=processes).ratio(RIVAL, STUDENT)
        assert found is not None  # nothing keeps going: a contender that fails raises
        return found

    def _exported(self, name: str, module: nn.Module) -> Artifact:
        own = self._dataset.preprocessing
        shape = (own.channels, own.image_size, own.image_size)
        return exported_float(module, shape, self._runtime, self._folder / name)


def _ratio(found: PairedRatio) -> float:
    """By CPU time where other work disturbed the wall clock."""
    return found.cpu_ratio if found.clocks_disagree else found.ratio


def _figures(found: PairedRatio) -> dict[str, float]:
    if found.clocks_disagree:
        return {"ratio": found.cpu_ratio, "lo": found.cpu_lo, "hi": found.cpu_hi}
    return {"ratio": found.ratio, "lo": found.lo, "hi": found.hi}


def verdict(rows: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Test accuracy of both by seed, and the student's lead in points: mean and every seed's.

    >>> rows = [{"student": s, "method": "dkd", "seed": 0, "test_top1": a} for s, a in (("student", .8), ("rival", .7))]
    >>> verdict(rows, "dkd")["lead_points"]
    [10.0]
    """
    found = {
        who: {row["seed"]: row["test_top1"] for row in rows if (row["student"], row["method"]) == (who, method)}
        for who in (STUDENT, RIVAL)
    }
    seeds = [seed for seed in found[STUDENT] if seed in found[RIVAL]]
    lead = [round(100 * (found[STUDENT][seed] - found[RIVAL][seed]), 2) for seed in seeds]
    return {"method": method, "seeds": seeds, "lead_points": lead, "wins": bool(lead) and min(lead) > 0}


def page_text(
    about: Mapping[str, Any], rows: list[dict[str, Any]], answer: Mapping[str, Any], methods: list[str]
) -> str:
    """Markdown: the two networks, their latency side by side, and what each learned."""
    rival = Rival(answer["rival"], answer["stem_stride"])
    ratio = answer["rival_over_student"]
    lines = [
        f"{rival.named(answer['width'])} takes {ratio['ratio']:.3f}x the student's time (99% CI {ratio['lo']:.3f} to "
        f"{ratio['hi']:.3f}; {answer['runtime']} fp32, {answer['image_size']} px, one thread, this host). "
        f"{about['train_images']} training images, {about['epochs']:g} epochs, batch {about['batch_size']}; rates and "
        f"weights settled on {about['val_images']} held-out images, judged on {about['test_images']} test images.",
        "",
        "| network | method | test accuracy, % | sd | seeds |",
        "|---|---|---|---|---|",
    ]
    for entry in summary(rows):
        if "refused" in entry:
            continue
        sd = "" if entry["sd"] is None else f"{100 * entry['sd']:.2f}"
        name = rival.named(answer["width"]) if entry["student"] == RIVAL else STUDENT
        lines.append(f"| {name} | {entry['method']} | {100 * entry['test_top1']:.2f} | {sd} | {entry['n']} |")
    lines.append("")
    for method in methods:
        found = verdict(rows, method)
        each = ", ".join(f"{points:+.2f}" for points in found["lead_points"])
        lines.append(f"{method}: the student leads by {each} points (seed by seed).")
    return "\n".join(lines)
