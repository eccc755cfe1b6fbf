"""From what a user names (a zoo model, a file, a run directory, a teacher) to contenders. Reads files, runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import device_runner
from edgekd.device_benchmarks.contender import (
    Contender,
    StudentModule,
    TeacherModule,
    ZooModule,
    of_artifact,
)
from edgekd.errors import InputError, did_you_mean
from edgekd.files import read_json
from edgekd.targets import get_target

MODEL_SUFFIXES = (".tflite", ".onnx", ".xml", ".pt2", ".mlpackage")
ON_DEVICES = (*device_runner.RUNTIMES, "tensorrt")


@dataclass(frozen=True)
class ZooOptions:
    """What a zoo model or a teacher needs besides its name: input side in px, checkpoint, and the data it is for."""

    image_size: int | None = None
    weights: Path | None = None
    data: str | None = None


def contenders_of(
    model: str,
    *,
    label: str = "",
    options: ZooOptions | None = None,
    runtimes: tuple[str, ...] = (),
    anywhere: bool = False,
) -> list[Contender]:
    """Everything that a name stands for: one contender, or for a run its student and each artifact that runs here.

    model: torchvision:NAME, timm:NAME, a model file, a run directory, or a teacher that `edgekd.teachers` alone knows
    (edgekd:fashion-mnist, a .safetensors). With `options.data`, a zoo model is the teacher of that data.
    runtimes: keep only these of a run's artifacts. label: put before the names, as "baseline ". anywhere: for another
    device, so that what this host cannot run stays, and a run stands for its artifacts alone.
    Raises: InputError: nothing of the kind exists, or nothing of it runs here.
    """
    options, (library, _, name) = options or ZooOptions(), model.partition(":")
    if options.weights is not None and not options.weights.is_file():
        raise InputError("no such file", where=options.weights)
    path, zoo = Path(model), library in ("torchvision", "timm") and bool(name)
    if library == "edgekd" or path.suffix == ".safetensors" or (zoo and options.data is not None):
        return [_teacher(model, label, options)]
    if zoo:
        return [_zoo(model, label, options)]
    if path.suffix in MODEL_SUFFIXES:
        return [_model_file(path, label=label, anywhere=anywhere)]
    if path.is_dir():
        return _run(path, label=label, runtimes=runtimes, anywhere=anywhere)
    if path.exists():
        raise InputError("not a model that can be timed", where=path, fix=f"known: {', '.join(MODEL_SUFFIXES)}")
    fix = f"name torchvision:NAME, timm:NAME, edgekd:NAME, a run directory or a {', '.join(MODEL_SUFFIXES)} file"
    raise InputError(f"no model '{model}'", fix=fix)


def run_baseline(folder: Path) -> list[Contender]:
    """What a run's student is compared with: its teacher as the user runs it, eager fp32; nothing for a black box."""
    settings = read_json(folder / "run.json")["settings"]
    spec = settings.get("teacher")
    plan = read_json(folder / "plan.json")
    if plan["teacher"]["black_box"]:
        return [of_artifact(_opened(Path(spec)), name="teacher, as given")]
    source = TeacherModule(
        spec=spec,
        weights=Path(settings["weights"]) if settings.get("weights") else None,
        classes=tuple(plan["data"]["classes"]),
        preprocessing=plan["preprocessing"],
        dataset_name=plan["data"]["name"],
    )
    return [Contender(name="teacher, torch fp32 eager", source=source)]


def is_run(model: str) -> bool:
    """Whether the name is a run directory of `edgekd distill`."""
    return (Path(model) / "run.json").is_file()


def runs_here(target: str) -> bool:
    """Whether this host can execute the target's artifacts."""
    needed = get_target(target).runs_here_with
    return bool(needed) and all(find_spec(package) is not None for package in needed)


def skipped_of_run(folder: Path) -> list[str]:
    """Artifacts of a run that this host cannot execute, as `TARGET PRECISION`."""
    return [f"{a.target} {a.precision}" for a in _artifacts(folder) if not runs_here(a.target)]


def _zoo(model: str, label: str, options: ZooOptions) -> Contender:
    library: Literal["torchvision", "timm"] = "timm" if model.startswith("timm:") else "torchvision"
    name = model.partition(":")[2]
    source = ZooModule(library=library, name=name, weights=options.weights, image_size=options.image_size)
    return Contender(name=f"{label}{model}, torch fp32 eager", source=source)


def _teacher(model: str, label: str, options: ZooOptions) -> Contender:
    from edgekd.data import load_data

    dataset = load_data(options.data, image_size=options.image_size)
    source = TeacherModule(
        spec=model,
        weights=options.weights,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing.to_dict(),
        dataset_name=dataset.name,
    )
    return Contender(name=f"{label}{model}, torch fp32 eager", source=source)


def _model_file(path: Path, *, label: str, anywhere: bool) -> Contender:
    artifact = _opened(path)
    if not anywhere and not runs_here(artifact.target):
        raise InputError(f"this host cannot run {get_target(artifact.target).title} models", where=path)
    return of_artifact(artifact, name=f"{label}{path.name}, {artifact.target} {artifact.precision}")


def _opened(path: Path) -> Artifact:
    from edgekd.runtimes import open_model_file

    return open_model_file(path.resolve())


def _run(folder: Path, *, label: str, runtimes: tuple[str, ...], anywhere: bool) -> list[Contender]:
    if not is_run(str(folder)):
        raise InputError(
            "not a run directory (it has no run.json)", where=folder, fix="give the folder that distill wrote"
        )
    wanted = {get_target(name).name for name in runtimes}
    found = {a.target for a in _artifacts(folder)}
    for name in sorted(wanted - found - {"null"}):
        raise InputError(f"the run has no artifact for '{name}'", where=folder, fix=did_you_mean(name, found))
    runnable = [a for a in _artifacts(folder) if (a.target in ON_DEVICES if anywhere else runs_here(a.target))]
    here = [a for a in runnable if not wanted or a.target in wanted]
    contenders = [] if wanted or anywhere else list(_student(folder, label))
    contenders += [of_artifact(a, name=f"{label}student, {a.target} {a.precision}") for a in here]
    if not contenders:
        where = "a device" if anywhere else "this host"
        raise InputError(f"nothing of this run can be executed on {where}", where=folder)
    return contenders


def _student(folder: Path, label: str) -> Iterator[Contender]:
    spec_file, weights = folder / "student.json", folder / "student.safetensors"
    if spec_file.is_file() and weights.is_file():
        source = StudentModule(spec_file=spec_file.resolve(), weights=weights.resolve())
        yield Contender(name=f"{label}student, torch fp32 eager", source=source)


def _artifacts(folder: Path) -> list[Artifact]:
    """What the run exported, at its paths as of now (a run may have been moved). Empty before the export stage."""
    if not (folder / "export.json").is_file():
        return []
    rows: list[Mapping[str, Any]] = read_json(folder / "export.json")["artifacts"]
    artifacts = [Artifact.model_validate(row["artifact"]) for row in rows if row["artifact"]]
    return [a.model_copy(update={"path": (folder / a.path).resolve()}) for a in artifacts]
