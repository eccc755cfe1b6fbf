"""Options of `edgekd export`, and how they become settings (strings become types here, once)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgekd.pipeline.model_export import ModelExportSettings

Precisions = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32,fp16,int8,w8 (weights only), by commas; all: the first three; auto: the fastest that holds.",
    ),
]
Profile = Annotated[
    str | None, typer.Option("--profile", "-p", help="Only what is legal on this device: a profile's name or TOML.")
]
Numbers = Annotated[str | None, typer.Option(help="One number, or one per channel, of pixel / 255.")]
Calibration = Annotated[
    int | None, typer.Option("--calibration-images", min=1, help="Training images for int8. Default: 512.")
]
ObserverName = Annotated[str, typer.Option("--observer", help="Ranges: auto, minmax, percentile or mse.")]
QatEpochs = Annotated[
    float,
    typer.Option(
        "--qat-epochs", min=0, help="Train int8 on, with the float model as its teacher, for so many epochs (or parts)."
    ),
]
QatRate = Annotated[float, typer.Option("--qat-learning-rate", help="Of AdamW, at its highest.")]
FloatLayers = Annotated[
    str | None, typer.Option("--float-layers", help="Comma-separated paths of layers that stay float in int8.")
]
Fix = Annotated[bool, typer.Option("--fix", help="Where a bar is missed: keep the layers that cause it in float.")]
Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Time every artifact on this host.")]
Explain = Annotated[
    bool, typer.Option("--explain/--no-explain", help="Where a bar is missed: find the layers. Takes minutes.")
]
Io = Annotated[str, typer.Option("--io", help="Dtype of input and output: auto, float32, int8 or uint8.")]
InputLayout = Annotated[str | None, typer.Option("--input-layout", help="NCHW or NHWC. Default: the target's own.")]
Fold = Annotated[bool, typer.Option("--fold-preprocessing", help="Artifacts take pixels and normalise them.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Conversions at a time. Default: as cores and memory allow.")
]
MaxLoss = Annotated[
    float, typer.Option("--max-loss-points", min=0, help="Top-1 points that int8 may lose before it counts as wrong.")
]
TestImages = Annotated[int, typer.Option("--test-images", min=32, help="Test images for accuracy in the runtime.")]
CheckImages = Annotated[int, typer.Option("--check-images", min=32, help="Test images for parity.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Convert also what was converted before.")]


def settings(options: Mapping[str, Any]) -> ModelExportSettings:
    """Settings from the command's options.

    Raises: InputError: a value is out of range or unknown; names the option.
    """
    from pydantic import ValidationError

    from edgekd.errors import InputError
    from edgekd.pipeline.model_export import ModelExportSettings
    from edgekd.targets import get_target

    precisions, auto = _precisions(options["precision"])
    document = {
        **{name: options[name] for name in _AS_THEY_ARE},
        "targets": tuple(dict.fromkeys(get_target(name).name for name in words(options["target"]))),
        "precisions": precisions,
        "auto": auto,
        "mean": _numbers("--mean", options["mean"]),
        "std": _numbers("--std", options["std"]),
        "float_layers": words(options["float_layers"]),
        "io_dtype": options["io"],
        "cache": not options["no_cache"],
    }
    try:
        return ModelExportSettings.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "mean"
        option = "--" + _OPTION.get(field, field).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] == "value_error" else f"{first['input']!r}: "
        raise InputError(f"{given}{message[0].lower()}{message[1:]}", where=option) from error


def words(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated option.

    >>> words(" a, b,,"), words(None)
    (('a', 'b'), ())
    """
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _precisions(text: str) -> tuple[tuple[str, ...], bool]:
    """(precisions, auto). Raises: InputError: one is unknown."""
    from edgekd.errors import InputError, did_you_mean
    from edgekd.pipeline.model_export.request import EVERY_PRECISION, PRECISIONS

    found = tuple(dict.fromkeys(words(text.lower())))
    for name in found:
        if name not in (*EVERY_PRECISION, "auto", "all"):
            fix = did_you_mean(name, [*EVERY_PRECISION, "auto"])
            raise InputError(f"no precision '{name}'", where="--precision", fix=fix)
    if not found:
        raise InputError("no precision given", where="--precision", fix="fp32, fp16, int8, w8, all or auto")
    named = tuple(name for name in found if name in EVERY_PRECISION)
    base = PRECISIONS if "all" in found or not named else ()
    return tuple(dict.fromkeys((*base, *named))), "auto" in found


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    from edgekd.errors import InputError

    if text is None:
        return None
    try:
        values = tuple(float(word) for word in words(text))
    except ValueError as error:
        raise InputError(f"'{text}' is not numbers", where=option, fix="as 0.485,0.456,0.406") from error
    if not values:
        raise InputError("no number given", where=option, fix="as 0.485,0.456,0.406")
    return values


_AS_THEY_ARE = (
    *(
        "model",
        "weights",
        "data",
        "image_size",
        "profile",
        "calibration_images",
        "observer",
        "qat_epochs",
        "qat_learning_rate",
        "fix",
        "measure",
    ),
    "explain",
    *("input_layout", "fold_preprocessing", "jobs", "seed", "skip_bad", "max_loss_points", "test_images"),
    "check_images",
)
_OPTION = {"targets": "target", "precisions": "precision", "io_dtype": "io", "cache": "no-cache"}
