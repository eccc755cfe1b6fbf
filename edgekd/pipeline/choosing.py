"""Which student: the spaces that the settings name, searched under the plan's budgets. Pure but for a cache."""

from __future__ import annotations

import copy
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from edgekd.errors import EdgekdError, InputError
from edgekd.export.cache import default_cache
from edgekd.files import read_json, write_json
from edgekd.latency import GraphCost, trace_cost
from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.plan import Plan
from edgekd.pipeline.pricing import Pricing, pricing_for
from edgekd.pipeline.record import fingerprint
from edgekd.pipeline.screening import Listed, Pool, screen
from edgekd.pipeline.spaces import stage_spaces, task_of
from edgekd.students import AnySpec, Infeasible, Limits, PrunedSpec, Selection, ZooSpec, build
from edgekd.students import merged as merge
from edgekd.students import search as search_space
from edgekd.students import select as select_listed
from edgekd.students.pruning import pruned as prune
from edgekd.students.spaces import pruned, zoo

# Macs are bounded by the teacher's; a black box has none to go by.
MACS_WITHOUT_TEACHER = 1_000_000_000
_COUNTS_FORMAT = 2  # of the kept costs: 2 has their operators
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_OPTIONS = {
    "latency_p90_ms": "--latency-ms",
    "peak_memory_mib": "--memory-mib",
    "artifact_size_mib": "--size-mib",
    "energy_mj": "--energy-mj",
    "macs": "a larger teacher, or --macs-fraction",
}


def choose(inputs: Inputs | Context, plan: Plan, *, tighten: float = 1.0) -> Selection:
    """Search the spaces under the plan's budgets, with what `pricing_for` says of their latencies.

    tighten: measured over predicted latency, as far as it is known (a correction). Times are multiplied by it, or by
    the upper end of the prediction's interval where that is more, before they are held against the budgets.
    Raises: InputError: nothing fits; the cheapest candidate and what it misses are named. Or the first runtime refuses
    an operator of every candidate. Or a space does not apply.
    """
    pricing, allowed = pricing_for(inputs, plan), limits(inputs, plan)
    screened = screen(_pools(inputs, plan, pricing), inputs, plan)
    for pools, left_out in screened.rounds():
        found = []
        for pool in pools:
            margin = max(tighten, pricing.high(of_stages=pool.space is not None)) / (1 - plan.budgets.thermal_headroom)
            kept = allowed.model_copy(update={"time_margin": margin})
            found.append(_best_of(pool, pricing, kept, inputs.seed))
        answer = merge(found)
        if isinstance(answer, Selection):
            return answer.model_copy(update={"left_out": left_out})
        nearest = answer
    raise InputError(
        f"{nearest.explain()} ({pricing.provenance})",
        where=f"budgets of profile '{inputs.profile.name}'",
        fix=f"raise the first: {_OPTIONS[nearest.binding]}",
    )


def _best_of(pool: Pool, pricing: Pricing, allowed: Limits, seed: int) -> Selection | Infeasible:
    if pool.space is not None:
        return search_space(pool.space, cost=pricing.stages, limits=allowed, seed=seed)
    return select_listed([(one.spec, one.figures) for one in pool.listed], limits=allowed)


def limits(inputs: Inputs | Context, plan: Plan) -> Limits:
    """The plan's budgets, and a share of the teacher's multiply-adds: a student as big as its teacher is none."""
    own, macs = inputs.teacher.preprocessing, MACS_WITHOUT_TEACHER
    if not inputs.teacher.black_box:
        traced = trace_cost(inputs.teacher.module, (1, *own.shape)).macs
        macs = max(1, int(plan.budgets.teacher_macs_fraction * traced))
    budgets = plan.budgets
    if budgets.energy_mj is not None and inputs.profile.power is None:
        what = "an energy budget, but nobody states what the device draws"
        raise InputError(what, where=f"profile '{inputs.profile.name}'", fix="add [power] limit_w to the profile")
    return Limits(
        latency_p90_ms=budgets.latency_p90_ms,
        peak_memory_mib=budgets.peak_memory_mib,
        artifact_size_mib=budgets.artifact_size_mib,
        macs=macs,
        energy_mj=budgets.energy_mj,
    )


def student_module(inputs: Inputs | Context, spec: AnySpec) -> nn.Module:
    """A student with its first weights: a pruned teacher keeps the teacher's, the others are as `build` makes them."""
    if isinstance(spec, PrunedSpec):
        return prune(copy.deepcopy(inputs.teacher.module).cpu().requires_grad_(True), spec)
    return build(spec)


def _pools(inputs: Inputs | Context, plan: Plan, pricing: Pricing) -> list[Pool]:
    spaces = stage_spaces(inputs, plan)
    return [Pool(name, spaces[name]) if name in spaces else _listed(name, inputs, pricing) for name in plan.spaces]


def _listed(name: str, inputs: Inputs | Context, pricing: Pricing) -> Pool:
    specs: Sequence[AnySpec]
    specs = _pruned_specs(inputs) if name == pruned.NAME else zoo.specs(task_of(inputs), weights=_zoo_weights(inputs))
    listed, reason = [], ""
    for spec in specs:
        try:
            cost = _counted(inputs, spec)
            figures = pricing.graphs.figures(pricing.totals(cost, spec.image_size))
        except EdgekdError as error:
            reason = reason or str(error)  # an old timm lacks a network, a small image is too small for another
            continue
        listed.append(Listed(spec, figures, cost.operators))
    if not listed:
        raise InputError(f"not one student can be built; the first: {reason}", where=f"space '{name}'")
    return Pool(name, None, tuple(listed))


def _counted(inputs: Inputs | Context, spec: AnySpec) -> GraphCost:
    """The traced cost of a listed student; a zoo network's is kept, since tracing two dozen of them takes a minute."""
    shape = (1, spec.in_channels, spec.image_size, spec.image_size)
    if not isinstance(spec, ZooSpec):
        return trace_cost(student_module(inputs, spec), shape)
    bare = spec.model_copy(update={"weights": None})
    versions = [importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "edgekd")]
    key = fingerprint([bare.model_dump(), versions, _COUNTS_FORMAT])[:24]
    file = default_cache().parent / "counts" / f"{key}.json"
    try:
        return GraphCost.model_validate(read_json(file))
    except (OSError, ValueError, EdgekdError):
        with torch.random.fork_rng(devices=[]):
            cost = trace_cost(build(bare), shape)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, cost.model_dump(mode="json"))
        return cost


def _pruned_specs(inputs: Inputs | Context) -> list[PrunedSpec]:
    teacher, task = inputs.teacher, task_of(inputs)
    architecture = teacher.facts.get("architecture")
    where = "space 'pruned'"
    if teacher.black_box or not isinstance(architecture, str):
        raise InputError(f"teacher '{teacher.name}' is an exported file: it has no layers to prune", where=where)
    if teacher.preprocessing.channels != task.in_channels:
        what = f"the teacher takes {teacher.preprocessing.channels} channels, the data have {task.in_channels}"
        raise InputError(what, where=where, fix="leave it out of --space")
    return pruned.specs(architecture, task)


def _zoo_weights(inputs: Inputs | Context) -> dict[str, str]:
    """Checkpoints by network: files called like the network (lcnet_050.safetensors) in the folder of --zoo-weights."""
    if inputs.zoo_weights is None:
        return {}
    folder = Path(inputs.zoo_weights)
    if not folder.is_dir():
        raise InputError("no such folder", where=f"--zoo-weights {folder}")
    files = {file.stem: str(file) for file in sorted(folder.iterdir()) if file.suffix in _WEIGHT_SUFFIXES}
    return {name: files[stem] for name in zoo.NETWORKS if (stem := name.partition(":")[2]) in files}


def correction(predicted_ms: float, measured_ms: float) -> float:
    """What the next prediction is multiplied by: measured over predicted, never below a tenth.

    >>> correction(2.0, 3.0)
    1.5
    """
    ratio = measured_ms / predicted_ms
    return ratio if math.isfinite(ratio) and ratio > 0.1 else 1.0
