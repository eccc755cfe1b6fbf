"""Rules applied: the answer to each question with its reason, and what would have to change for another recipe.

What would change the advice is found by asking the same rules again with one thing changed, never written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

from edgekd.advisor.guide import QUESTIONS, Question
from edgekd.advisor.situation import Family, Labels, Modality, Need, Situation
from edgekd.artifact import Frozen

_LABELS = {
    "clean": "the labels are right",
    "corrupted": "a share of the labels is wrong",
    "none": "there are no labels",
}
_FAMILIES = {"cnn": "a CNN", "transformer": "a transformer", "other": "another kind of net"}
_MODALITIES = {
    "same": "the teacher reads the same images",
    "paired": "the teacher reads another kind of input, paired with the images",
    "unpaired": "the teacher reads another kind of input, unpaired",
}
_GRID = 160  # values looked at along a figure before the border is narrowed down


class Reason(Frozen):
    """One question of the guide, answered."""

    question: str
    answer: str
    why: str
    source: str


class Counterfactual(Frozen):
    """A change of the situation that would change the advice. recipe None: not to distil."""

    change: str
    recipe: str | None
    assistants: int | None = None
    because: str


class Advice(Frozen):
    """recipe: a name of `edgekd recipes list`, None: do not distil. assistants: how many links of a chain.

    labels: whether the recipe may read them. changes: what would lead to another recipe, or to another
    number of assistants.
    """

    recipe: str | None
    assistants: int | None = None
    labels: bool = True
    reasons: tuple[Reason, ...]
    changes: tuple[Counterfactual, ...] = ()
    situation: Situation

    def reason(self, question: Question) -> Reason:
        """The answer to one question."""
        return next(reason for reason in self.reasons if reason.question == question)


def advise(situation: Situation, *, explain: bool = True) -> Advice:
    """What to teach with, and why. explain: also look for what would change it (a few thousand rule look-ups, 10 ms).

    >>> s = Situation(teacher_parameters=700_000, student_parameters=140_000, classes=10, train_images=55_000)
    >>> advise(s).recipe, advise(s.model_copy(update={"black_box": True})).recipe
    ('soft-targets-hint', 'dkd')
    """
    answers = _answers(situation)
    advice = Advice(
        recipe=answers["recipe"].answer or None,
        assistants={"one assistant": 1, "several assistants": 2}.get(answers["capacity gap"].answer)
        if answers["recipe"].answer == "teacher-assistant"
        else None,
        labels=situation.labels == "clean",
        reasons=tuple(answers.values()),
        situation=situation,
    )
    return advice.model_copy(update={"changes": tuple(_changes(advice))}) if explain else advice


def _answers(situation: Situation) -> dict[Question, Reason]:
    found: dict[Question, Reason] = {}
    said: dict[Question, str] = {}
    figures = _figures(situation)
    for question, rules in QUESTIONS.items():
        rule = next(rule for rule in rules if rule.applies(situation, said))
        said[question] = rule.answer
        found[question] = Reason(
            question=question, answer=rule.answer, why=rule.why.format(**figures), source=rule.source
        )
    return found


def _figures(s: Situation) -> dict[str, str]:
    def text(value: float | None, form: str) -> str:
        return "an unknown number of" if value is None else format(value, form)

    return {
        "gap": text(s.gap, ".3g"),
        "shortfall": text(s.shortfall, ".2f"),
        "per_class": text(s.images_per_class, ".0f"),
        "teacher": text(s.teacher_accuracy, ".1%"),
        "robust": text(s.teacher_robust, ".1%"),
        "classes": str(s.classes),
        "teachers": str(s.teachers),
        "families": f"{_FAMILIES[s.teacher_family]} teaches {_FAMILIES[s.student_family]}",
    }


# ---------------------------------------------------------------------- what would change it


def _changes(advice: Advice) -> Iterator[Counterfactual]:
    for change, changed in (*_other_facts(advice.situation), *_other_figures(advice)):
        other = advise(changed, explain=False)
        if (other.recipe, other.assistants) != (advice.recipe, advice.assistants):
            yield Counterfactual(
                change=change, recipe=other.recipe, assistants=other.assistants, because=_because(advice, other)
            )


def _because(advice: Advice, other: Advice) -> str:
    """The first answer that differs decided; where the recipe is refused, why."""
    pairs = zip(advice.reasons, other.reasons, strict=True)
    first = next(after for before, after in pairs if before.answer != after.answer)
    return first.why if first.question == "recipe" else f"{first.question}: {first.answer} ({first.why})"


def _other_facts(s: Situation) -> Iterator[tuple[str, Situation]]:
    """Every fact that is a choice, in its other values."""
    choices: list[tuple[str, dict[str, Any]]] = [
        ("the teacher is an exported file that shows only logits", {"black_box": True}),
        ("the teacher is a module whose features can be read", {"black_box": False}),
        ("there is no teacher", {"teachers": 0}),
        ("there is one teacher", {"teachers": 1}),
        ("there are two teachers", {"teachers": 2}),
        *((_LABELS[labels], {"labels": labels}) for labels in get_args(Labels)),
        ("not one image is at hand", {"original_data": False}),
        *((f"the teacher is {_FAMILIES[family]}", {"teacher_family": family}) for family in get_args(Family)),
        *((f"the student is {_FAMILIES[family]}", {"student_family": family}) for family in get_args(Family)),
        *((_MODALITIES[modality], {"modality": modality}) for modality in get_args(Modality)),
        *((f"--need {need}", {"needs": (need,)}) for need in get_args(Need)),
    ]
    for change, update in choices:
        if any(getattr(s, key) != value for key, value in update.items()):
            yield change, s.model_copy(update=update)


def _other_figures(advice: Advice) -> Iterator[tuple[str, Situation]]:
    """Every figure, at the ranges in which another recipe is advised, with their borders."""
    s = advice.situation
    yield from _ranges(advice, "train_images", "{} training images", _geometric(1, max(10 * s.train_images, 10_000)))
    largest = 10 * max(s.student_parameters, s.teacher_parameters or 0)
    yield from _ranges(advice, "student_parameters", "a student of {} parameters", _geometric(1000, largest))
    if s.teacher_accuracy is not None and s.teachers:
        # From just above chance to the teacher's own accuracy.
        low = min(1 / s.classes, s.teacher_accuracy)
        grid = [low + (s.teacher_accuracy - low) * (k + 1) / _GRID for k in range(_GRID)]
        yield from _ranges(advice, "alone_accuracy", "the student alone, measured at {}", grid)


def _geometric(low: int, high: int) -> list[float]:
    return [round(low * (high / low) ** (k / _GRID)) for k in range(_GRID + 1)]


def _ranges(advice: Advice, field: str, text: str, grid: list[float]) -> Iterator[tuple[str, Situation]]:
    """Each stretch of the grid with one other advice: its borders narrowed down, and a situation inside it."""

    def at(value: float) -> Situation:
        return advice.situation.model_copy(update={field: round(value) if grid[-1] > 1 else value})

    def outcome(value: float) -> tuple[str | None, int | None]:
        other = advise(at(value), explain=False)
        return other.recipe, other.assistants

    found = [outcome(value) for value in grid]
    start = 0
    for k in range(1, len(grid) + 1):
        if k < len(grid) and found[k] == found[start]:
            continue
        low = None if start == 0 else _border(grid[start - 1], grid[start], outcome)
        high = None if k == len(grid) else _border(grid[k - 1], grid[k], outcome)
        yield text.format(_stretch(low, high, share=grid[-1] <= 1)), at(grid[(start + k - 1) // 2])
        start = k


def _border(low: float, high: float, outcome: Any) -> float:
    """Where the outcome changes between two values, by bisection."""
    first = outcome(low)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if outcome(middle) == first else (low, middle)
    return high


def _stretch(low: float | None, high: float | None, *, share: bool) -> str:
    def text(value: float) -> str:
        return f"{value:.1%}" if share else f"{math.ceil(round(value, 3)):,}"

    if low is None and high is None:
        return "any number of"
    if low is None or high is None:
        return f"under {text(high)}" if high is not None else f"{text(low or 0)} or more"
    return f"{text(low)} to {text(high)}"
