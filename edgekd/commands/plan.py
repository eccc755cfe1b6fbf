"""`edgekd plan`: what a run would do and why, in seconds, without a run directory."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekd.commands import console, run_options
from edgekd.commands.run_options import (
    Candidates,
    Data,
    EnergyBudget,
    Epochs,
    ImageSize,
    ImageSizes,
    LatencyBudget,
    MacsFraction,
    MemoryBudget,
    NeedList,
    PrecisionOption,
    ProfileName,
    RecipeOption,
    SearchEpochs,
    Seed,
    SizeBudget,
    SkipBad,
    SpaceList,
    TargetList,
    Teacher,
    Threads,
    Weights,
    ZooWeights,
)


def plan(  # noqa: PLR0913 - a command's options are its parameters
    profile: ProfileName,
    teacher: Teacher = None,
    weights: Weights = None,
    data: Data = None,
    target: TargetList = None,
    precision: PrecisionOption = None,
    image_size: ImageSize = None,
    image_sizes: ImageSizes = None,
    epochs: Epochs = None,
    recipe: RecipeOption = None,
    need: NeedList = None,
    latency_ms: LatencyBudget = None,
    memory_mib: MemoryBudget = None,
    size_mib: SizeBudget = None,
    energy_mj: EnergyBudget = None,
    macs_fraction: MacsFraction = None,
    threads: Threads = 1,
    space: SpaceList = None,
    zoo_weights: ZooWeights = None,
    candidates: Candidates = None,
    search_epochs: SearchEpochs = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Pick precision, targets, student and recipe for a device; nothing is trained or written.

    Example: `edgekd plan --profile raspberry-pi-5 --latency-ms 5`
    """
    settings = run_options.settings(locals())
    from edgekd.commands.headline import print_plan
    from edgekd.pipeline import api

    document = api.plan(settings)
    if json:
        console.print_json(document)
    else:
        print_plan(document)
