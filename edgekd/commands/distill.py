"""`edgekd distill`: the whole job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.commands import console, run_options
from edgekd.commands.run_options import (
    Baseline,
    BatchSize,
    CalibrationImages,
    Candidates,
    Data,
    DevicesFile,
    DryRun,
    EnergyBudget,
    Epochs,
    ImageSize,
    ImageSizes,
    LatencyBudget,
    MacsFraction,
    MemoryBudget,
    NeedList,
    On,
    PrecisionOption,
    ProfileName,
    QatEpochs,
    RecipeOption,
    Reselections,
    Resume,
    SearchEpochs,
    Seed,
    SizeBudget,
    SkipBad,
    SpaceList,
    TargetList,
    Teacher,
    Threads,
    Track,
    Weights,
    ZooWeights,
)


def distill(  # noqa: PLR0913 - a command's options are its parameters
    profile: ProfileName,
    teacher: Teacher = None,
    weights: Weights = None,
    data: Data = None,
    target: TargetList = None,
    precision: PrecisionOption = None,
    image_size: ImageSize = None,
    image_sizes: ImageSizes = None,
    epochs: Epochs = None,
    qat_epochs: QatEpochs = 2,
    batch_size: BatchSize = 128,
    recipe: RecipeOption = None,
    need: NeedList = None,
    latency_ms: LatencyBudget = None,
    memory_mib: MemoryBudget = None,
    size_mib: SizeBudget = None,
    energy_mj: EnergyBudget = None,
    macs_fraction: MacsFraction = None,
    threads: Threads = 1,
    calibration_images: CalibrationImages = 512,
    space: SpaceList = None,
    zoo_weights: ZooWeights = None,
    candidates: Candidates = None,
    search_epochs: SearchEpochs = None,
    reselections: Reselections = 1,
    on: On = None,
    devices_file: DevicesFile = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    track: Track = None,
    baseline: Baseline = False,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory. Default: runs/PROFILE-NNN.")] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Teacher + data + device in; a student that fits, exported, checked, measured and bundled out.

    Example: `edgekd distill --profile raspberry-pi-5 --teacher timm:resnet18 --weights t.safetensors --data ./images`
    """
    settings = run_options.settings(locals())
    from edgekd.commands.progress import TerminalEvents
    from edgekd.pipeline import api

    with TerminalEvents() as events:
        result = api.distill(settings, out=out, resume=resume, dry_run=dry_run, events=events)
    if not result.document:  # a process that torchrun started to help the first one
        return
    if json:
        console.print_json(result.document)
    elif dry_run:
        _print_plan_end(result)
    else:
        from edgekd.commands.headline import print_headline

        print_headline(result)
    if result.failed:
        raise typer.Exit(1)


def _print_plan_end(result: Any) -> None:
    console.data().print(
        f"dry run: nothing was trained; plan in {result.folder}/plan.json; go on with --resume --out {result.folder}"
    )
