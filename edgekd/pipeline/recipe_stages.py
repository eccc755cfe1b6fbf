"""A recipe inside a run: its materials come from the run, its stages are taught one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.distill import Stage, Training
from edgekd.distill.batches import seed_of
from edgekd.errors import InputError
from edgekd.export.cache import default_cache
from edgekd.pipeline.context import Context
from edgekd.pipeline.resolution import untaught
from edgekd.pipeline.teaching import teach
from edgekd.recipes import Materials, Recipe, stages_of
from edgekd.students import AnySpec, StudentSpec
from edgekd.teachers import load_teacher


def teach_recipe(
    context: Context, recipe: Recipe, training: Training
) -> tuple[nn.Module, dict[str, Any], list[dict[str, Any]], list[str]]:
    """The last stage's first student, its training under the name `distil`, those of the stages before, and notes."""
    stages = stages_of(recipe, materials(context, recipe, training))
    notes = [f"recipe: {recipe.title} ({recipe.source})"]
    if len(stages) > 1:
        notes.append("stages: " + ", ".join(stage.name for stage in stages))
    if context.plan.precision == "int8":
        notes.append("quantisation-aware training keeps soft targets and a hint, whatever the recipe")
    earlier = [teach(context, dataclasses.replace(stage, name=f"distil-{stage.name}")) for stage in stages[:-1]]
    row = teach(context, dataclasses.replace(stages[-1], name="distil"))
    row["links"] = [stage.name for stage in stages[:-1] if _teaches_later(stage, stages)]
    return next(iter(stages[-1].students.values())), row, earlier, notes


def _teaches_later(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether its student is a source of another stage: a link of a chain."""
    made = set(map(id, stage.students.values()))
    return any(id(source) in made for other in stages if other is not stage for source in other.sources.values())


def materials(context: Context, recipe: Recipe, training: Training) -> Materials:
    """What the run has: its data, its teacher and the recipe's further ones, its student in any width."""
    teachers = {"teacher": context.teacher}
    for name, table in recipe.teachers.items():
        weights = Path(table.weights) if table.weights else None
        teachers[name] = load_teacher(table.model, weights=weights, dataset=context.dataset)
    spec, seed = context.student_spec(), context.settings.seed

    def new_student(width: float, number: int) -> nn.Module:
        torch.manual_seed(seed if number == 0 else seed_of(seed, "student", number))
        return untaught(context, widened(spec, width))

    return Materials(
        dataset=context.dataset,
        teachers={name: teacher.adapt(context.dataset.preprocessing) for name, teacher in teachers.items()},
        new_student=new_student,
        training=training,
        black_boxes=frozenset(name for name, teacher in teachers.items() if teacher.black_box),
        fingerprints={name: teacher.fingerprint for name, teacher in teachers.items()},
        cache=default_cache().parent / "teachers",
    )


def widened(spec: AnySpec, factor: float) -> AnySpec:
    """The same network with all channels multiplied, in steps of 8 (of 16 where it attends).

    Raises: InputError: it is not one of stages.
    """
    if factor == 1:
        return spec
    if not isinstance(spec, StudentSpec):
        what = f"a recipe with students of width {factor:g} needs one of stages"
        raise InputError(what, where=f"space '{spec.space}'", fix="choose another --space or --recipe")
    step = 16 if any(stage.block == "attention" for stage in spec.stages) else 8

    def channels(count: int) -> int:
        return max(step, step * round(count * factor / step))

    stages = tuple(stage.model_copy(update={"channels": channels(stage.channels)}) for stage in spec.stages)
    update = {"stages": stages, "stem_channels": channels(spec.stem_channels)}
    return spec.model_copy(update={**update, "head_channels": channels(spec.head_channels)})
