"""`edgekd export`: a model, or a finished run, to every runtime, each artifact checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.commands import console, export_options
from edgekd.commands.export_options import (
    Calibration,
    CheckImages,
    Explain,
    Fix,
    FloatLayers,
    Fold,
    InputLayout,
    Io,
    Jobs,
    MaxLoss,
    Measure,
    NoCache,
    Numbers,
    ObserverName,
    Precisions,
    Profile,
    QatEpochs,
    QatRate,
    TestImages,
)
from edgekd.commands.run_options import Data, ImageSize, Seed, SkipBad, TargetList, Weights


def export(  # noqa: PLR0913 - a command's options are its parameters
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="timm:NAME, torchvision:NAME, edgekd:wrnD-K, a .safetensors, a .pt2, or a run directory."),
    ],
    weights: Weights = None,
    data: Data = None,
    image_size: ImageSize = None,
    mean: Numbers = None,
    std: Numbers = None,
    target: TargetList = None,
    precision: Precisions = "all",
    profile: Profile = None,
    calibration_images: Calibration = None,
    observer: ObserverName = "auto",
    qat_epochs: QatEpochs = 0.0,
    qat_learning_rate: QatRate = 1e-4,
    float_layers: FloatLayers = None,
    max_loss_points: MaxLoss = 1.0,
    fix: Fix = False,
    measure: Measure = True,
    explain: Explain = True,
    io: Io = "auto",
    input_layout: InputLayout = None,
    fold_preprocessing: Fold = False,
    test_images: TestImages = 2000,
    check_images: CheckImages = 256,
    out: Annotated[Path | None, typer.Option("--out", help="Folder. Default: exports/NAME-NNN.")] = None,
    jobs: Jobs = None,
    no_cache: NoCache = False,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="A run only: write the bundle and the report again.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Export a model to every runtime; check each artifact on real images, time it, and explain what falls short.

    A run directory of `edgekd distill` is exported to more targets with --target and --bundle.

    Example: `edgekd export timm:resnet18 --weights r18.safetensors --data ./images --precision auto`
    """
    options = dict(locals())
    if Path(model).is_dir() or _missing_path(model):
        _refuse_model_options(context)
        _of_run(Path(model), target=target, bundle=bundle, json=json)
        return
    if bundle:
        _refuse("--bundle", "it is for a run directory", "leave it out")
    _of_model(options, out=out, json=json)


def _of_run(run: Path, *, target: str | None, bundle: bool, json: bool) -> None:
    from edgekd.commands.headline import print_exports
    from edgekd.commands.progress import TerminalEvents
    from edgekd.pipeline import api
    from edgekd.targets import get_target

    names = tuple(dict.fromkeys(get_target(name).name for name in export_options.words(target)))
    with TerminalEvents() as events:
        result = api.export(run, targets=names, bundle=bundle, events=events)
    if json:
        console.print_json(result.document)
    else:
        print_exports(result)
    if result.failed:
        raise typer.Exit(1)


def _of_model(options: dict[str, Any], *, out: Path | None, json: bool) -> None:
    settings = export_options.settings(options)
    from edgekd.commands.export_table import print_result
    from edgekd.commands.progress import TerminalEvents
    from edgekd.pipeline.model_export import export_model

    with TerminalEvents() as events:
        result = export_model(settings, out=out, events=events)
    if json:
        console.print_json(result.document.model_dump(mode="json"))
    else:
        print_result(result)
    if result.failed:
        raise typer.Exit(1)


def _missing_path(model: str) -> bool:
    """A path that is not there and cannot be a model's: the error of a run directory fits it best."""
    return ":" not in model and not Path(model).suffix and not Path(model).exists()


def _refuse_model_options(context: typer.Context) -> None:
    """A run has its own model, data and programs. Raises: InputError: an option that says otherwise was given."""
    ours = {"model", "target", "bundle", "json"}
    for name in context.params:
        given = context.get_parameter_source(name)
        if name not in ours and given is not None and given.name == "COMMANDLINE":
            _refuse(
                f"--{name.replace('_', '-')}", "a run directory brings its own", "use --target, --bundle and --json"
            )


def _refuse(option: str, what: str, fix: str) -> None:
    from edgekd.errors import InputError

    raise InputError(what, where=option, fix=fix)
