"""Options that `distill` and `plan` share, and how they become Settings (strings become types here, once)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgekd.pipeline.settings import Settings

ProfileName = Annotated[
    str, typer.Option("--profile", "-p", help="Hardware profile: a name from `edgekd profiles list`, or a TOML file.")
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        "-t",
        help="torchvision:NAME, timm:NAME, a .safetensors, a run, or an exported file. Default: the shipped one.",
    ),
]
Weights = Annotated[str | None, typer.Option("--weights", help="Checkpoint for a torchvision: or timm: teacher.")]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", help="Image folder (train/val/class), fashion-mnist, cifar10, cifar100, or an .npz."),
]
TargetList = Annotated[
    str | None, typer.Option("--target", help="Comma-separated: tflite,coreml,openvino,onnx,tensorrt. Default: all.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, fp16 or int8. Default: what the profile prefers, with its reason."),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", help="Side that images are read at, and the student's input, px. Default: the data's."
    ),
]
ImageSizes = Annotated[
    str | None,
    typer.Option(
        "--image-sizes",
        help="Comma-separated: sides of the student's input that the search picks from, px; at most what is read.",
    ),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Default: from the size of the training split.")]
QatEpochs = Annotated[
    int, typer.Option("--qat-epochs", min=1, help="Epochs of quantisation-aware distillation (int8 only).")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=2, help="Images per training step, over all processes.")]
LatencyBudget = Annotated[
    float | None, typer.Option("--latency-ms", help="Budget for the 90th percentile, batch 1. Default: the profile's.")
]
MemoryBudget = Annotated[
    float | None, typer.Option("--memory-mib", help="Budget for peak memory. Default: the profile's.")
]
SizeBudget = Annotated[
    float | None, typer.Option("--size-mib", help="Budget for the exported file. Default: the profile's.")
]
MacsFraction = Annotated[
    float | None,
    typer.Option("--macs-fraction", help="At most this share of the teacher's multiply-adds. Default: the profile's."),
]
EnergyBudget = Annotated[
    float | None,
    typer.Option("--energy-mj", help="Budget for the energy of one inference at the power limit. Default: none."),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of every runtime while measuring.")]
CalibrationImages = Annotated[
    int, typer.Option("--calibration-images", min=300, help="Training images for post-training quantisation.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", help="How to teach: a name from `edgekd recipes list`, or a TOML or YAML file. Default: as advised."
    ),
]
NeedList = Annotated[
    str | None,
    typer.Option(
        "--need",
        help="Comma-separated, for the advised recipe: accuracy, features, structure, robustness, calibration, "
        "latency, training-time, interpretability.",
    ),
]
SpaceList = Annotated[
    str | None,
    typer.Option(
        "--space",
        help="Comma-separated: inverted-residual (default), gated, residual, hybrid, zoo, pruned (docs/students.md).",
    ),
]
ZooWeights = Annotated[
    str | None, typer.Option("--zoo-weights", help="Folder of checkpoints for --space zoo, named NETWORK.safetensors.")
]
Candidates = Annotated[
    int | None,
    typer.Option(
        "--candidates", help="Students that learn for a while before one is chosen. Default: 8 with a GPU, else 1."
    ),
]
SearchEpochs = Annotated[
    float | None, typer.Option("--search-epochs", help="Of the first such round. Default: a fortieth of the training.")
]
Reselections = Annotated[
    int, typer.Option("--reselect", help="How often a student too slow on the attached device may be replaced.")
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        help="The profile's device: ssh://user@host, adb:SERIAL or a name of the devices file. Candidates and student "
        "are measured there (docs/devices.md). Default: this host, where it is that device.",
    ),
]
DevicesFile = Annotated[
    Path | None, typer.Option("--devices", help="Devices file. Default: ~/.config/edgekd/devices.toml.")
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="tensorboard (into RUN/tensorboard) or mlflow: curves of every training; repeatable."),
]
Baseline = Annotated[
    bool, typer.Option("--baseline", help="Also train the same student without the teacher, for the same steps.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the profile's last run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan, select and try every export; train nothing.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip unreadable images (they are counted) instead of stopping.")
]


def needs_of(text: str | None) -> tuple[Any, ...]:
    """The words of --need. Raises: InputError: an unknown one; the nearest are named."""
    from typing import get_args

    from edgekd.advisor.situation import Need
    from edgekd.errors import InputError, did_you_mean

    words = tuple(dict.fromkeys(_words(text)))
    known = get_args(Need)
    for word in words:
        if word not in known:
            raise InputError(f"unknown need '{word}'", where="--need", fix=did_you_mean(word, known))
    return words


def settings(options: Mapping[str, Any]) -> Settings:
    """Settings from a command's options.

    Raises: InputError: a value is out of range, or a target is unknown; names the option.
    """
    from pydantic import ValidationError

    from edgekd.errors import InputError
    from edgekd.pipeline.settings import Settings
    from edgekd.recipes import load_recipe
    from edgekd.targets import get_target

    names = tuple(dict.fromkeys(get_target(n).name for n in (options["target"] or "").split(",") if n.strip()))
    recipe = options.get("recipe")
    document = {
        **_student_options(options),
        "recipe": None if recipe is None else load_recipe(recipe),
        "track": options.get("track") or (),
        "needs": needs_of(options.get("need")),
        "profile": options["profile"],
        "teacher": options["teacher"],
        "weights": options["weights"],
        "data": options["data"],
        "targets": names,
        "precision": options["precision"],
        "image_size": options["image_size"],
        "image_sizes": _words(options.get("image_sizes")),
        "seed": options["seed"],
        "skip_bad": options["skip_bad"],
        "baseline": options.get("baseline", False),
        "on": options.get("on"),
        "devices_file": None if options.get("devices_file") is None else str(options["devices_file"]),
        "threads": options.get("threads", 1),
        "calibration_images": options.get("calibration_images", 512),
        "budgets": {
            "latency_p90_ms": options["latency_ms"],
            "peak_memory_mib": options["memory_mib"],
            "artifact_size_mib": options["size_mib"],
            "energy_mj": options.get("energy_mj"),
            "teacher_macs_fraction": options.get("macs_fraction"),
        },
        "training": {
            "epochs": options["epochs"],
            "qat_epochs": options.get("qat_epochs", 2),
            "batch_size": options.get("batch_size", 128),
        },
    }
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = next(str(part) for part in reversed(first["loc"]) if isinstance(part, str))  # not the place in a list
        option = _OPTION.get(key, key.replace("_", "-"))
        said = first["msg"].removeprefix("Value error, ")
        what = said if first["type"] == "value_error" else f"{first['input']!r}: {said}"
        raise InputError(what, where=f"--{option}") from error


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _student_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is said about the student; absent options keep their defaults."""
    spaces = _words(options.get("space"))
    return {**({"spaces": spaces} if spaces else {}), **_present(options)}


def _present(options: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("zoo_weights", "candidates", "search_epochs", "reselections")
    return {key: options[key] for key in keys if options.get(key) is not None}


_OPTION = {
    "reselections": "reselect",
    "spaces": "space",
    "latency_p90_ms": "latency-ms",
    "peak_memory_mib": "memory-mib",
    "artifact_size_mib": "size-mib",
    "energy_mj": "energy-mj",
    "teacher_macs_fraction": "macs-fraction",
    "targets": "target",
}
