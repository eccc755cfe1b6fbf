"""Advice inside a run: the situation is read off teacher, student, data and settings; the rules are the advisor's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from edgekd.advisor import DEFAULT_RECIPE, Advice, Situation, advised_recipe
from edgekd.advisor.situation import Family
from edgekd.pipeline.choosing import student_module
from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.settings import Settings
from edgekd.recipes import Recipe
from edgekd.students import AnySpec


def situation_of(inputs: Inputs | Context, settings: Settings, spec: AnySpec) -> Situation:
    """What is known before anything is trained. The teacher's accuracy is what its file says of itself, if anything."""
    teacher, data = inputs.teacher, inputs.dataset
    student = student_module(inputs, spec)
    recorded = teacher.facts.get("test_top1")
    further = () if settings.recipe is None else settings.recipe.teachers
    return Situation(
        teachers=1 + len(further),
        black_box=teacher.black_box,
        teacher_family="other" if teacher.black_box else family_of(teacher.module),
        student_family=family_of(student),
        teacher_parameters=None if teacher.black_box else parameters_of(teacher.module),
        student_parameters=parameters_of(student),
        teacher_accuracy=float(recorded) if isinstance(recorded, (int, float)) and 0 <= recorded <= 1 else None,
        classes=data.num_classes,
        train_images=len(data.train),
        needs=settings.needs or ("accuracy",),
    )


def parameters_of(model: nn.Module) -> int:
    """How many numbers it learned."""
    return max(1, sum(p.numel() for p in model.parameters()))


def family_of(model: nn.Module) -> Family:
    """transformer: it has attention over tokens; cnn: it has convolutions whose windows overlap (cutting an image into
    patches is none); else other.

    >>> family_of(nn.Conv2d(1, 1, 3)), family_of(nn.TransformerEncoderLayer(8, 2)), family_of(nn.Linear(2, 2))
    ('cnn', 'transformer', 'other')
    """
    modules = list(model.modules())
    if any(_attends(module) for module in modules):
        return "transformer"
    overlap = any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > max(m.stride) for m in modules)
    return "cnn" if overlap else "other"


def _attends(module: nn.Module) -> bool:
    """Self-attention by class: torch's own, or a module named so with a joint query-key-value layer (timm, HF)."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    children: Iterable[str] = dict(module.named_children())
    return "Attention" in type(module).__name__ and ("qkv" in children or "query" in children or "q" in children)


def lines(document: dict[str, Any], settings: Settings) -> list[str]:
    """The advice as sentences for people; short where a recipe was asked for."""
    advised = document["recipe"] or "not to distil"
    if settings.recipe is not None:
        return [f"recipe: '{settings.recipe.title}', as asked; the advisor would say: {advised}"]
    reasons = {reason["question"]: reason for reason in document["reasons"]}
    chosen = reasons.pop("recipe")
    return [
        f"recipe: {advised}: {chosen['why']} ({chosen['source']}); what would change it: edgekd advise",
        *(f"{question}: {reason['answer']}: {reason['why']}" for question, reason in reasons.items()),
    ]


def recipe_to_teach(context: Context) -> Recipe | None:
    """The asked recipe, else the advised one. None: the run's own soft targets and hint, which are what
    `soft-targets-hint` says with the run's weights and with a fallback where a net has no feature map."""
    if context.settings.recipe is not None:
        return context.settings.recipe
    advice = Advice.model_validate(context.record.result("select")["advice"])
    return None if advice.recipe == DEFAULT_RECIPE else advised_recipe(advice)
