"""Stage `distil`: the float student learns from labels, soft targets and one hint; optionally its twin learns alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.distill import CrossEntropy, Hint, Milestone, SoftTarget, Stage, Term, Training, default_tap, evaluate
from edgekd.errors import InputError
from edgekd.files import write_whole
from edgekd.pipeline.advising import recipe_to_teach
from edgekd.pipeline.assessing import assess, data_of
from edgekd.pipeline.context import Context
from edgekd.pipeline.recipe_stages import teach_recipe
from edgekd.pipeline.resolution import untaught
from edgekd.pipeline.teaching import teach


def distil(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: histories and test accuracies of teacher, student and, on request, the student without its teacher."""
    students, trainings, earlier, notes = train_all(context)
    weights = save_weights(students["student"], context.folder / "student.safetensors")
    models = {"teacher": context.teacher_module, **students}
    seen = {who: data_of(context, who) for who in models}
    tested = {
        who: evaluate(model, seen[who].test, seen[who].preprocessing, keep_logits=True) for who, model in models.items()
    }
    accuracy = {who: found.to_dict() for who, found in tested.items()}
    for who, found in accuracy.items():
        context.events.note(f"{who}: test top-1 {found['top1']:.2%} of {found['n']}")
    logits = {who: found.logits for who, found in tested.items() if found.logits is not None}
    assessment = assess(context, models, logits)
    result = {"trainings": trainings, "earlier": earlier, "notes": notes, "accuracy": accuracy}
    return {**result, "assessment": assessment}, [weights]


def train_all(
    context: Context,
) -> tuple[dict[str, nn.Module], list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """The student, and with --baseline its twin without a teacher, trained.

    Result: models; their histories; histories of the stages that a recipe put before; notes.
    """
    earlier: list[dict[str, Any]] = []
    recipe = recipe_to_teach(context)
    if recipe is not None:
        student, row, earlier, notes = teach_recipe(context, recipe, training_for(context))
    else:
        student = build_student(context)
        terms, notes = terms_for(context, student, context.student_spec().image_size)
        row = teach(context, stage_for(context, "distil", student, terms))
    students, trainings = {"student": student}, [row]
    if context.settings.baseline:
        students["baseline"] = build_student(context)
        alone = stage_for(context, "baseline", students["baseline"], [Term(CrossEntropy())])
        trainings.append(teach(context, alone))
    return students, trainings, earlier, notes


def build_student(context: Context) -> nn.Module:
    """The selected student with its first weights: the same for the student and its baseline."""
    torch.manual_seed(context.settings.seed)
    return untaught(context, context.student_spec())


def terms_for(context: Context, student: nn.Module, image_size: int) -> tuple[list[Term], list[str]]:
    """Cross-entropy, soft targets and a hint between the last feature maps; a black box gives soft targets only.

    image_size: px of the student's input.
    """
    training = context.settings.training
    terms = [
        Term(CrossEntropy(), weight=training.cross_entropy_weight),
        Term(SoftTarget(temperature=training.temperature), weight=training.soft_target_weight, source="teacher"),
    ]
    if context.teacher.black_box:
        return terms, ["no hint: the teacher is an exported file and shows only its logits"]
    example, own = (
        data.preprocessing.normalise(data.train.images([0, 1]))
        for data in (context.dataset, context.dataset.at(image_size))
    )
    try:
        mine, theirs = default_tap(student, own), default_tap(context.teacher_module, example)
    except InputError as error:
        return terms, [f"no hint: {error}"]
    terms.append(Term(Hint(mine, theirs), weight=training.hint_weight, source="teacher"))
    return terms, [f"hint: student '{mine}' <- teacher '{theirs}'"]


def stage_for(
    context: Context,
    name: str,
    student: nn.Module,
    terms: list[Term],
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    milestones: tuple[Milestone, ...] = (),
) -> Stage:
    """A stage of the core with the run's schedule."""
    training = training_for(context, epochs=epochs, learning_rate=learning_rate)
    sources = {"teacher": context.teacher_module} if any(term.source == "teacher" for term in terms) else {}
    return Stage(name, context.dataset, {"student": student}, terms, sources, training, milestones)


def training_for(context: Context, *, epochs: float | None = None, learning_rate: float | None = None) -> Training:
    """The run's schedule."""
    settings = context.settings.training
    return Training(
        epochs=epochs or context.plan.epochs,
        batch_size=settings.batch_size,
        learning_rate=learning_rate or settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        shift_px=context.plan.shift_px,
        seed=context.settings.seed,
        mixed_precision=settings.mixed_precision,
    )


def save_weights(model: nn.Module, path: Path) -> Path:
    """Weights as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return write_whole(path, lambda temporary: save_file(state, temporary))
