"""Stage `plan`: the decisions with the facts they were made from, told before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgekd.data import Dataset
from edgekd.errors import EdgekdError, InputError
from edgekd.latency import trace_cost
from edgekd.pipeline.context import Context, Inputs, versions
from edgekd.pipeline.plan import Plan, as_document
from edgekd.teachers import Teacher


def plan(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: the plan, and the facts about profile, teacher and data."""
    result = document(context, context.plan)
    for line in lines(result):
        context.events.note(line)
    return result, []


def document(inputs: Inputs | Context, decided: Plan) -> dict[str, Any]:
    """The plan and what it was made from, as plain data."""
    _check_output(inputs)
    return {
        "plan": as_document(decided),
        "profile": inputs.profile.model_dump(mode="json"),
        "teacher": teacher_facts(inputs.teacher),
        "data": data_facts(inputs.dataset),
        "preprocessing": inputs.dataset.preprocessing.to_dict(),
        "versions": versions(),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The plan as sentences for people."""
    data, teacher, decided, budgets = result["data"], result["teacher"], result["plan"], result["plan"]["budgets"]
    cost = (
        f", {teacher['macs'] / 1e6:.1f} M MACs, {teacher['parameters'] / 1e3:.0f} k parameters"
        if teacher["macs"]
        else ""
    )
    return [
        f"device: {result['profile']['title']}; budgets: p90 <= {budgets['latency_p90_ms']:g} ms, "
        f"memory <= {budgets['peak_memory_mib']:g} MiB, file <= {budgets['artifact_size_mib']:g} MiB",
        f"data: {data['name']}, {len(data['classes'])} classes, "
        f"{data['n_train']} train / {data['n_val']} held out / {data['n_test']} test",
        f"teacher: {teacher['name']}{cost}",
        *decided["reasons"],
        *(f"{t['target']}: {t['precision'] or 'not exported'} ({t['why']})" for t in decided["targets"]),
    ]


def teacher_facts(teacher: Teacher) -> dict[str, Any]:
    """Who teaches; cost is None for a black box or a module that cannot be traced."""
    own, macs, parameters = teacher.preprocessing, None, None
    if not teacher.black_box:
        parameters = sum(p.numel() for p in teacher.module.parameters())
        try:
            macs = trace_cost(teacher.module, (1, *own.shape)).macs
        except EdgekdError:
            macs = None  # a teacher that torch.export cannot trace still teaches
    return {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "parameters": parameters,
        "macs": macs,
        "black_box": teacher.black_box,
        "facts": teacher.facts,
    }


def _check_output(inputs: Inputs | Context) -> None:
    """One forward pass: the teacher must give one finite logit per class for the data's images."""
    data, teacher = inputs.dataset, inputs.teacher
    images = data.preprocessing.normalise(data.train.images([0, 1]))
    with torch.no_grad():
        logits = teacher.adapt(data.preprocessing)(images)
    where = f"teacher '{teacher.name}'"
    if tuple(logits.shape) != (2, data.num_classes):
        raise InputError(f"gives {tuple(logits.shape)[1:]} outputs for {data.num_classes} classes", where=where)
    if not bool(torch.isfinite(logits).all()):
        raise InputError("gives NaN or infinite logits on the first images", where=where)


def data_facts(data: Dataset) -> dict[str, Any]:
    """What is learned from and tested on."""
    return {
        "name": data.name,
        "classes": list(data.classes),
        "n_train": len(data.train),
        "n_val": len(data.val),
        "n_test": len(data.test),
        "fingerprint": data.fingerprint,
        "note": data.note,
    }
