"""Gates on the transfer itself: held-out data, other images, calibration, classes, inherited errors, method.

Only the first is hard: a test set that was trained on makes every figure of the report false. The others advise, since
how much calibration, robustness or one class matters is the task's to say and no budget of a profile does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgekd.gates.deployment import SUBSET_WHY
from edgekd.report.document import Gate, RunReport
from edgekd.report.headline import deployed_accuracy, size_text, speed_counts
from edgekd.report.transfer import Assessment, Attacked, ClassRow
from edgekd.statistics import wilson_interval

DUPLICATES_MAX = 0.01  # share of test images that may occur in training: edgekd
RETAINED_MIN = 0.95  # student's share of accuracy kept under corruption, over the teacher's: edgekd
BASELINE_MIN = 1.05  # the guide's 105%
ROBUST_MIN = 0.1  # under this nobody is robust, and shares of it say nothing: edgekd
ECE_MAX, ECE_OVER_TEACHER = 0.05, 0.02  # edgekd
CLASS_POINTS_MAX = 5.0  # edgekd
_SHOWN = 3


def transfer_gates(report: RunReport) -> Iterator[Gate]:
    """Every gate; those without a figure are unverified and say what to do."""
    if report.assessment is not None:
        yield _held_out(report.assessment)
        yield _other_distribution(report, report.assessment)
        if report.assessment.attacked is not None:
            yield _robustness(report, report.assessment.attacked)
        yield _calibration(report, report.assessment)
        yield _classes(report, report.assessment)
        yield _negative_transfer(report, report.assessment)
    if report.teaching is not None:
        yield _documented(report)
        yield _method(report)
    if report.diagnoses:
        yield _failure_modes(report)


def _advice(name: str, *, met: bool, figure: str, threshold: str, why: str, report: RunReport) -> Gate:
    """pass or warn; unverified on a subset of the data."""
    if report.data.is_subset:
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=SUBSET_WHY)
    return Gate(name=name, state="pass" if met else "warn", figure=figure, threshold=threshold, why="" if met else why)


def _held_out(found: Assessment) -> Gate:
    """Decision guide, gate 2: the test images were not trained on. Hard."""
    name, threshold = "test images are held out", f"<= {DUPLICATES_MAX:.0%} of them among the training images"
    if found.duplicates is None:
        why = found.duplicates_note or "too many images to compare"
        return Gate(name=name, state="unverified", figure="not counted", threshold=threshold, why=why)
    figure = f"{found.duplicates:,} of {found.n_test:,}, pixel for pixel"
    met = found.duplicates <= DUPLICATES_MAX * found.n_test
    why = "" if met else "every accuracy here is too high: remove the copies from the training images"
    return Gate(name=name, state="pass" if met else "fail", figure=figure, threshold=threshold, why=why)


def _other_distribution(report: RunReport, found: Assessment) -> Gate:
    """Decision guide, gate 5: tested on images unlike the training ones."""
    name = "other distribution (corruptions)"
    threshold = f"keeps >= {RETAINED_MIN:.0%} of what the teacher keeps of its accuracy"
    clean_s, clean_t = found.student_clean, found.teacher_clean
    if not found.corruptions or not clean_s or not clean_t:
        return Gate(
            name=name, state="unverified", figure="not measured", threshold=threshold, why="no corrupted images"
        )
    mean_s = sum(row.student for row in found.corruptions) / len(found.corruptions)
    mean_t = sum(row.teacher for row in found.corruptions) / len(found.corruptions)
    worst = min(found.corruptions, key=lambda row: row.student - row.teacher)
    share = (mean_s / clean_s) / (mean_t / clean_t) if mean_t else 1.0
    figure = (
        f"{mean_s:.1%} under {len(found.corruptions)} (clean {clean_s:.1%}), "
        f"teacher {mean_t:.1%} (clean {clean_t:.1%}), "
        f"which is {share:.1%}; furthest behind: {worst.corruption} {worst.severity}, {worst.student:.1%} against "
        f"{worst.teacher:.1%}, n = {found.n_corrupted}"
    )
    why = "train with such images (augmentation, mixup, function-matching), or --need robustness"
    return _advice(name, met=share >= RETAINED_MIN, figure=figure, threshold=threshold, why=why, report=report)


def _robustness(report: RunReport, found: Attacked) -> Gate:
    """Decision guide, gate 1, on attacked images."""
    name = "robust accuracy"
    threshold = f">= {RETAINED_MIN:.0%} of the teacher's, or >= {BASELINE_MIN:.0%} of the baseline's, under attack"
    others = {"teacher": found.teacher, "baseline": found.baseline}
    known = {who: value for who, value in others.items() if value is not None}
    beside = ", ".join(f"{who} {value:.1%}" for who, value in known.items())
    figure = (
        f"{found.student:.1%} still right within {255 * found.epsilon:.3g}/255 ({found.steps} steps, cross-entropy and "
        f"margin, n = {found.n})" + (f"; {beside}" if beside else "")
    )
    if not known:
        why = "the teacher shows no gradient and no baseline was trained: run with --baseline"
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=why)
    robust = found.teacher is not None and found.teacher >= ROBUST_MIN
    beats = found.baseline is not None and found.student >= max(BASELINE_MIN * found.baseline, ROBUST_MIN)
    met = beats or (robust and found.teacher is not None and found.student >= RETAINED_MIN * found.teacher)
    why = "more epochs or a larger student"
    if not robust and found.teacher is not None:
        fallen = f"the teacher itself falls to {found.teacher:.1%}"
        why = f"{fallen}: take one trained on attacked images, or the recipe adversarial-training"
    return _advice(name, met=met, figure=figure, threshold=threshold, why=why, report=report)


def _calibration(report: RunReport, found: Assessment) -> Gate:
    name = "calibration (ECE)"
    threshold = f"<= {100 * ECE_MAX:g} points, or at most {100 * ECE_OVER_TEACHER:g} over the teacher's"
    if found.ece_student is None:
        return Gate(name=name, state="unverified", figure="not measured", threshold=threshold, why="no test accuracy")
    teacher = "unknown" if found.ece_teacher is None else f"{100 * found.ece_teacher:.1f}"
    allowed = ECE_MAX if found.ece_teacher is None else max(ECE_MAX, found.ece_teacher + ECE_OVER_TEACHER)
    figure = f"{100 * found.ece_student:.1f} points, teacher {teacher}, 15 bins, n = {found.n_test:,}"
    why = "a temperature fitted on the held-out images, label smoothing, or --need calibration"
    return _advice(name, met=found.ece_student <= allowed, figure=figure, threshold=threshold, why=why, report=report)


def _behind(found: Assessment, other: Callable[[ClassRow], float | None]) -> list[str]:
    """Classes whose recall is lower by more than the bar, and by more than chance: the 95% intervals do not meet."""
    rows = []
    for row in found.classes:
        theirs = other(row)
        if theirs is None or row.n == 0 or 100 * (theirs - row.student) <= CLASS_POINTS_MAX:
            continue
        high = wilson_interval(round(row.student * row.n), row.n)[1]
        low = wilson_interval(round(theirs * row.n), row.n)[0]
        if high < low:
            rows.append((theirs - row.student, f"{row.name} {row.student:.1%} against {theirs:.1%}"))
    return [text for _, text in sorted(rows, reverse=True)]


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _classes(report: RunReport, found: Assessment) -> Gate:
    """Decision guide, gate 10: what the teacher can do for each class, the student can."""
    name = "no class left behind"
    threshold = f"no class more than {CLASS_POINTS_MAX:g} points under the teacher's recall, beyond chance"
    if not found.classes:
        return Gate(name=name, state="unverified", figure="not measured", threshold=threshold, why="no test accuracy")
    behind = _behind(found, lambda row: row.teacher)
    worst = min(found.classes, key=lambda row: row.student - row.teacher)
    figure = _listed(behind) or f"{worst.name} furthest, {100 * (worst.student - worst.teacher):+.1f} points"
    why = "more images or weight for these classes, or a larger student"
    return _advice(name, met=not behind, figure=figure, threshold=threshold, why=why, report=report)


def _negative_transfer(report: RunReport, found: Assessment) -> Gate:
    """Decision guide: the student inherits the teacher's errors; gate 9: cases in which the teacher itself fails."""
    name = "negative transfer"
    threshold = f"no class more than {CLASS_POINTS_MAX:g} points under the baseline without teacher, beyond chance"
    wrong = max(found.teacher_wrong, 1)
    figure = (
        f"of {found.teacher_wrong:,} images that the teacher gets wrong the student gets "
        f"{found.student_right / wrong:.0%} right and repeats the answer on {found.student_same / wrong:.0%}"
    )
    if found.baseline_same is None:
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why="run with --baseline")
    behind = _behind(found, lambda row: row.baseline)
    figure += f" (baseline {found.baseline_same / wrong:.0%})" + (f"; {_listed(behind)}" if behind else "")
    why = "more weight on the labels, or a teacher that knows these classes"
    return _advice(name, met=not behind, figure=figure, threshold=threshold, why=why, report=report)


def _documented(report: RunReport) -> Gate:
    """Decision guide, gate 7: speedup and compression are figures of this run, not claims."""
    name, threshold = "compression and speedup measured", "both against the teacher, by measurement"
    ratio = next((row for row in report.ratios if row.key == "teacher-today-to-student"), None)
    speed = ratio.ratio if ratio is not None and ratio.ratio is not None and speed_counts(report, ratio) else None
    parts, teaching, primary = [], report.teaching, report.primary
    if speed is not None:
        parts.append(f"{speed:.1f}x faster")
    size = primary.size_bytes if primary is not None else None
    before = teaching.teacher_bytes if teaching is not None else None
    if before and size:
        parts.append(f"{size_text(before)} to {size_text(size)}, {before / size:.1f}x smaller")
    if report.teacher.parameters:
        parts.append(f"{report.teacher.parameters / max(report.student.parameters, 1):.1f}x fewer parameters")
    both = speed is not None and bool(before and size)
    why = "" if both else "the speedup or the teacher's file size was not measured here: run the measure stage"
    figure = "; ".join(parts) or "nothing measured"
    return Gate(name=name, state="pass" if both else "unverified", figure=figure, threshold=threshold, why=why)


def _method(report: RunReport) -> Gate:
    """Decision guide, gates 3, 4 and 8: gap, knowledge and mechanism were weighed before the training."""
    teaching = report.teaching
    assert teaching is not None
    name, threshold = "method chosen for a reason", "the advised recipe, or another one that reaches the accuracy gate"
    figure = f"taught by {teaching.taught}; advised: {teaching.advised or 'not to distil'}"
    student, baseline = deployed_accuracy(report), report.accuracy("baseline")
    helped = student is not None and baseline is not None and student.top1 > baseline.top1
    met = teaching.taught == teaching.advised or helped
    why = teaching.why or "edgekd advise says why; --baseline shows whether this recipe helped"
    return Gate(name=name, state="pass" if met else "warn", figure=figure, threshold=threshold, why="" if met else why)


def _failure_modes(report: RunReport) -> Gate:
    """Decision guide, gate 6."""
    name, threshold = "no failure mode", "no warning among the diagnostics"
    found = [row for row in report.diagnoses if row.state == "warning"]
    checked = sum(row.state != "unchecked" for row in report.diagnoses)
    figure = _listed([f"{row.name} ({row.where})" for row in found]) or f"{checked} checks, none fired"
    why = found[0].fix if found else ""
    return _advice(name, met=not found, figure=figure, threshold=threshold, why=why, report=report)
