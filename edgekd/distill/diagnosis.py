"""Failure modes of distillation as code: figures in, a check out that says what was found, why, and what to do.

Every check is pure and says one of three things: ok, warning, or unchecked with the reason. Thresholds are the decision
guide's where it has one; the others are edgekd's and were set so that healthy runs stay silent (tests/distill).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgekd.distill.figures import StageFigures
from edgekd.statistics import wilson_interval

COLLAPSE_POINTS = 2.0  # decision guide: under the no-KD baseline by more
LINK_LEAST = 0.90  # decision guide: an assistant's accuracy over its teacher's
MIMICRY_LEFT = 0.2  # edgekd: a loss this far down is low
TASK_LEAST = 0.9  # edgekd: student over teacher; below it the task metric is poor
ENTROPY_UNDER = 0.9  # edgekd: student's entropy over the teacher's
ACCURACY_UNDER = 0.01  # edgekd: what counts as under the teacher's accuracy
DIMENSION_LEAST = 1.5  # edgekd: features that vary in one direction only
ONE_ANSWER = 0.9  # edgekd: the same answer for so many images
DIVERGES = 1.5  # edgekd: a loss over its own best epoch
SIGMAS = 3.0
_PROBE_LEAST = 50
# What is said while training goes on; the others may heal until its end.
LASTING = ("dead taps", "diverging loss", "collapsed features")

State = Literal["ok", "warning", "unchecked"]


@dataclass(frozen=True)
class Check:
    """One failure mode. figure: what was found; cause and fix: of a warning, or why it is unchecked."""

    name: str
    state: State
    figure: str
    cause: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @property
    def line(self) -> str:
        """The warning in one line."""
        return f"{self.name}: {self.figure}; likely cause: {self.cause}; fix: {self.fix}"


def early(figures: StageFigures) -> list[Check]:
    """What can be seen before the first step."""
    return [dead_taps(figures)]


def of_stage(figures: StageFigures, history: Sequence[Mapping[str, float]], *, steady: Sequence[str]) -> list[Check]:
    """Every check of a finished stage, or of one that is under way. history: mean loss by term, an epoch each; steady:
    the terms whose loss has no reason to rise."""
    return [
        dead_taps(figures),
        collapsed_features(figures),
        knowledge_confusion(figures),
        misalignment(figures),
        overconfidence(figures),
        divergence(history, steady),
    ]


def dead_taps(figures: StageFigures) -> Check:
    """A tap that says the same about every image teaches nothing."""
    name = "dead taps"
    models = {"student": figures.student, **figures.teachers}
    found = [(who, tap) for who, model in models.items() for tap in model.taps]
    dead = [f"{who}'s '{tap.tap}'" for who, tap in found if tap.variation == 0]
    if not found:
        return Check(name, "ok", "no features are read")
    if not dead:
        least = min(tap.variation for _, tap in found)
        return Check(name, "ok", f"{len(found)} taps, least variation over the images {least:.2g}")
    return Check(
        name,
        "warning",
        f"{', '.join(dead)} give the same for all of {figures.n} images",
        "a layer whose units never fire, or a tap that does not depend on the image (a constant, a position table)",
        "tap another layer (`stage:-1`), lower the learning rate, or look at the layer's biases",
    )


def collapsed_features(figures: StageFigures) -> Check:
    """Features along one line, or one answer for nearly everything, where teacher and labels have more."""
    name, student = "collapsed features", figures.student
    if figures.n < _PROBE_LEAST or figures.classes < 3:
        return Check(name, "unchecked", f"{figures.n} images, {figures.classes} classes", "too few to tell")
    teachers = {t.tap: t.dimension for model in figures.teachers.values() for t in model.taps}
    widest = max((d for d in teachers.values() if d is not None), default=None)
    flat = [t for t in student.taps if t.dimension is not None and t.dimension < DIMENSION_LEAST]
    flat = flat if widest is None or widest >= 2 * DIMENSION_LEAST else []
    dimensions = [t.dimension for t in student.taps if t.dimension is not None]
    one_answer = student.commonest >= max(ONE_ANSWER, 1.5 * figures.chance)
    figure = f"commonest answer {student.commonest:.0%} of {figures.n} images"
    figure += f", effective dimension {min(dimensions):.2g}" if dimensions else ""
    figure += f" (teacher {widest:.2g})" if widest is not None else ""
    if not flat and not one_answer:
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        figure,
        "the loss has a trivial optimum that the student found (one direction, one answer), or units died",
        "add a cross-entropy term, lower the learning rate or the weight of the feature term, or normalise features",
    )


def _poor(figures: StageFigures) -> tuple[bool, str]:
    """Whether the task metric is poor beside the best teacher's, and the comparison in words."""
    best = max((model.accuracy for model in figures.teachers.values()), default=0.0)
    said = f"held-out accuracy {figures.student.accuracy:.1%}, teacher {best:.1%}"
    return best > figures.chance and figures.student.accuracy < TASK_LEAST * best, said


def knowledge_confusion(figures: StageFigures) -> Check:
    """Every distillation loss is low and the task metric poor: what was learned does not decide the task."""
    name = "knowledge-type confusion"
    if not figures.losses or not figures.teachers or figures.n < _PROBE_LEAST:
        return Check(
            name, "unchecked", "nothing to compare", "no teacher that can be asked, or too few held-out images"
        )
    poor, said = _poor(figures)
    left = {label: last / first for label, (first, last) in figures.losses.items() if first > 0}
    figure = f"{said}; losses at {', '.join(f'{v:.0%} ({k})' for k, v in left.items())} of their start"
    if not poor or not left or max(left.values()) > MIMICRY_LEFT:
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        figure,
        "the student matches what the loss asks for, but that knowledge does not decide the task",
        "another type of knowledge: soft targets or cross-entropy beside features, deeper taps, or relations",
    )


def misalignment(figures: StageFigures) -> Check:
    """A student at chance whose losses did not fall: what the teacher says does not belong to what the student sees."""
    name, student = "misalignment (chance level)", figures.student
    if figures.n < _PROBE_LEAST:
        return Check(name, "unchecked", f"{figures.n} held-out images", "too few to tell")
    low, _ = wilson_interval(round(student.accuracy * figures.n), figures.n, z=SIGMAS)
    figure = f"held-out accuracy {student.accuracy:.1%}, chance {figures.chance:.1%}, n = {figures.n}"
    lost = [who for who, t in figures.teachers.items() if t.accuracy <= 1.5 * figures.chance]
    if lost:
        return Check(
            name,
            "warning",
            f"{figure}; teacher '{lost[0]}' {figures.teachers[lost[0]].accuracy:.1%}",
            "the teacher itself is at chance here: its classes are in another order, or its input is not what it knows",
            "check the teacher's class order, normalisation and kind of input",
        )
    agree = max((c.agreement for c in figures.against.values()), default=0.0)
    mimicked = [first > 0 and last <= MIMICRY_LEFT * first for first, last in figures.losses.values()]
    if low > figures.chance or figures.chance > 0.9 or (mimicked and all(mimicked)):
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        f"{figure}; agreement with the teacher {agree:.1%}" if figures.against else figure,
        "teacher and student do not see the same thing (another modality, unpaired samples, shuffled images), or the "
        "training is far too short",
        "pair the samples, align the two with a contrastive term (crd), or distil within one modality first",
    )


def overconfidence(figures: StageFigures) -> Check:
    """Surer than the teacher and less often right."""
    name = "overconfidence"
    if not figures.against or figures.n < _PROBE_LEAST:
        return Check(
            name, "unchecked", "nothing to compare", "no teacher that can be asked, or too few held-out images"
        )
    who = max(figures.teachers, key=lambda n: figures.teachers[n].accuracy)
    teacher, gap = figures.teachers[who], figures.against[who]
    figure = (
        f"entropy {figures.student.entropy:.3f} nats, teacher {teacher.entropy:.3f}; "
        f"accuracy {figures.student.accuracy:.1%}, teacher {teacher.accuracy:.1%}"
    )
    surer = figures.student.entropy < ENTROPY_UNDER * teacher.entropy
    surer = surer and gap.entropy_gap < -SIGMAS * gap.entropy_gap_se
    if not surer or figures.student.accuracy >= teacher.accuracy - ACCURACY_UNDER:
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        figure,
        "hard labels or sharp soft targets made the student surer than the teacher it does not reach",
        "a higher temperature, more weight on soft targets, label smoothing or mixup, or several teachers",
    )


def divergence(history: Sequence[Mapping[str, float]], steady: Sequence[str]) -> Check:
    """A loss that ends well above its own best epoch."""
    name = "diverging loss"
    if len(history) < 2:
        return Check(name, "unchecked", f"{len(history)} epoch", "one epoch shows no trend (nan and inf stop a run)")
    rises = {
        label: history[-1][label] / best
        for label in steady
        if (best := min(epoch[label] for epoch in history)) > 0 and history[0][label] > 0
    }
    worst = max(rises, key=lambda label: rises[label], default="")
    if not worst:
        return Check(name, "unchecked", "no term of constant weight", "every weight moves")
    figure = f"{worst} ends at {rises[worst]:.2f} times its best epoch"
    if rises[worst] <= DIVERGES:
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        figure,
        "the learning rate is too high for this loss, or two terms pull against each other",
        "lower the learning rate, set clip_norm, or lower the weight of the term that rises",
    )


def capacity_collapse(student: float, baseline: float | None) -> Check:
    """Accuracies of the student and of its twin that learned without a teacher. Source: decision guide."""
    name = "capacity-mismatch collapse"
    if baseline is None:
        return Check(
            name, "unchecked", f"student {student:.1%}", "no baseline", "--baseline trains it for the same steps"
        )
    points = 100 * (student - baseline)
    figure = f"{points:+.2f} points against the baseline ({baseline:.1%})"
    if points >= -COLLAPSE_POINTS:
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        figure,
        "the teacher asks for more than the student can hold",
        "an assistant of middle size (teacher-assistant), a smaller teacher, or more weight on the labels",
    )


def chain_degradation(links: Sequence[tuple[str, float, float]]) -> Check:
    """links: (name, accuracy, accuracy of its teacher) of each assistant. Source: decision guide."""
    name = "chain degradation"
    if not links:
        return Check(name, "ok", "no chain")
    shares = {link: accuracy / teacher if teacher > 0 else 1.0 for link, accuracy, teacher in links}
    worst = min(shares, key=lambda link: shares[link])
    figure = f"'{worst}' has {shares[worst]:.1%} of its teacher's accuracy"
    if shares[worst] >= LINK_LEAST:
        return Check(name, "ok", figure)
    return Check(
        name,
        "warning",
        figure,
        "errors add up along the chain",
        "let the first teacher teach every link too, a shorter chain, more epochs, or several assistants in a pool",
    )
