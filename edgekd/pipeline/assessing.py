"""After training: leakage, corruptions, attacks, classes and the teacher's own errors, measured on test images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from edgekd.data.dataset import Dataset, ResizedSplit, TensorSplit, View
from edgekd.data.duplicates import duplicates
from edgekd.distill.attack import Box, robust_accuracy
from edgekd.distill.evaluate import accuracy_of, predict
from edgekd.distill.sources import evaluating
from edgekd.pipeline.advising import recipe_to_teach
from edgekd.pipeline.context import Context

MOST_IMAGES, LEAST_IMAGES = 512, 64
# What the corrupted images may cost, in the teacher's multiply-adds: some 15 s of a laptop core.
MACS_TO_SPEND = 1e12
ATTACK_STEPS = 20  # as ARD is judged with


def assess(context: Context, models: Mapping[str, nn.Module], logits: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `rows.assessment` needs beside accuracies. logits: of each model on the whole test split."""
    data = context.dataset
    repeated = duplicates(data.test, data.train, data.val)
    context.events.note(
        "test images among the training images: " + ("not counted" if repeated is None else f"{repeated}")
    )
    return {
        "n_test": len(data.test),
        "duplicates": repeated,
        "class_counts": torch.bincount(data.test.labels, minlength=data.num_classes).tolist(),
        "errors": errors(logits, data.test.labels),
        "corrupted": corrupted(context, models),
        "attacked": attacked(context, models),
    }


def data_of(context: Context, who: str) -> Dataset:
    """The data as a model gets them: the teacher what the run reads, a student the size of its input."""
    return context.dataset if who == "teacher" else context.student_dataset


def errors(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, int | None]:
    """On the images that the teacher gets wrong: how often the student is right, or gives the teacher's answer."""
    said = {who: answers.argmax(1) for who, answers in logits.items()}
    wrong = said["teacher"] != labels
    same = {who: int((answer[wrong] == said["teacher"][wrong]).sum()) for who, answer in said.items()}
    return {
        "teacher_wrong": int(wrong.sum()),
        "student_right": int((said["student"][wrong] == labels[wrong]).sum()),
        "student_same": same["student"],
        "baseline_same": same.get("baseline"),
    }


def corrupted(context: Context, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Accuracy of student and teacher on a stratified part of the test images, clean and under every corruption."""
    data, count = context.dataset, images_to_corrupt(context)
    index = data.sample("test", count, seed=context.settings.seed)
    images, labels = data.test.images(index), data.test.labels[index]
    who = {name: models[name] for name in ("student", "teacher")}

    def accuracies(pixels: Tensor) -> dict[str, float]:
        split, found = TensorSplit(pixels, labels), {}
        for name, model in who.items():
            with evaluating(model):
                own = data_of(context, name)
                shown = ResizedSplit(split, own.preprocessing.image_size)
                found[name] = accuracy_of(predict(model, shown, own.preprocessing, batch_size=128), labels)
        return found

    clean, rows = accuracies(images), []
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            changed = corrupt(images, corruption, severity, seed=context.settings.seed)
            rows.append({"corruption": corruption, "severity": severity, **accuracies(changed)})
            context.events.progress("corrupted images", len(rows), len(CORRUPTIONS) * len(SEVERITIES), corruption)
    return {"n": len(labels), "clean": clean, "rows": rows}


def images_to_corrupt(context: Context) -> int:
    """As many as the teacher's cost allows, within bounds."""
    return _affordable(context, len(CORRUPTIONS) * len(SEVERITIES) + 1)


def _affordable(context: Context, passes: int) -> int:
    macs = context.record.result("plan")["teacher"]["macs"] or 1e9
    affordable = int(MACS_TO_SPEND / (macs * passes))
    return min(len(context.dataset.test), max(LEAST_IMAGES, min(MOST_IMAGES, affordable)))


def attacked(context: Context, models: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """Accuracy of everybody whose gradient can be had, under attack; None where robustness is not what was asked for.

    The box is that of the recipe's attacker, with more steps than it trains with; else the usual 8/255.
    """
    recipe = recipe_to_teach(context)
    players = [player for stage in recipe.stages for player in stage.players.values()] if recipe else []
    attacker = next((player for player in players if player.kind == "attacker"), None)
    if attacker is None and "robustness" not in context.settings.needs:
        return None
    box = Box(steps=ATTACK_STEPS)
    if attacker is not None:
        box = Box(attacker.epsilon, attacker.step, max(ATTACK_STEPS, attacker.steps))
    # Two attacks, a step of which is a pass forward and one backward (two passes' worth).
    index = context.dataset.sample("test", _affordable(context, 2 * 3 * box.steps), seed=context.settings.seed)
    who = {name: model for name, model in models.items() if not (name == "teacher" and context.teacher.black_box)}
    found = {}
    for number, (name, model) in enumerate(who.items(), start=1):
        own = data_of(context, name)
        shown = View(own.test, index)
        found[name] = robust_accuracy(model, shown, own.preprocessing, box=box, seed=context.settings.seed)
        context.events.progress("attacked images", number, len(who), name)
        context.events.note(f"{name}: {found[name]:.2%} of {len(index)} test images stay right under attack")
    return {"n": len(index), "epsilon": box.epsilon, "step": box.step, "steps": box.steps, **found}
