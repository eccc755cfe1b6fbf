"""What `--teacher` may say: the shipped one, a named architecture with weights, a file that loads alone, or a run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.data.dataset import Dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import InputError
from edgekd.files import sha256_of
from edgekd.teachers.architectures import FORMS, build, first_convolution, fixed_image_size
from edgekd.teachers.black_box import SUFFIXES as BLACK_BOX_SUFFIXES
from edgekd.teachers.black_box import open_black_box
from edgekd.teachers.checkpoint import State, class_count_error, fit, preprocessing_of, read_facts, read_state
from edgekd.teachers.teacher import Teacher

SHIPPED = {"edgekd:fashion-mnist": "fashion-mnist-wrn16-2.safetensors"}
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


def load_teacher(spec: str | None, *, weights: Path | None = None, dataset: Dataset) -> Teacher:
    """A teacher for a dataset, frozen and in eval mode on the CPU.

    spec: None or `edgekd:fashion-mnist` (the shipped one); `timm:NAME`, `torchvision:NAME` or `edgekd:wrnD-K` with
    weights; a .safetensors file that names its architecture; an exported .onnx, .tflite, .xml or .pt2; a run directory.
    Raises: InputError: the spec, the file or its weights cannot be used, or its classes are not as many as the data's;
    MissingExtraError: the runtime of an exported file is not installed.
    """
    if spec is None and weights is not None:
        spec, weights = str(weights), None
    spec = spec or "edgekd:fashion-mnist"
    if spec in SHIPPED:
        _refuse_weights(weights, spec)
        return _from_safetensors(shipped_file(spec), spec, dataset)
    if spec.partition(":")[0] in ("edgekd", "timm", "torchvision"):
        return _from_architecture(spec, weights, dataset)
    _refuse_weights(weights, spec)
    return _from_path(Path(spec).expanduser(), spec, dataset)


def shipped_file(name: str) -> Path:
    """Where a shipped teacher lies. Raises: InputError: this installation lacks it."""
    path = Path(str(resources.files("edgekd.teachers") / "assets" / SHIPPED[name]))
    if not path.is_file():
        raise InputError(
            f"the shipped teacher '{name}' is not in this installation", where=path, fix="reinstall edgekd"
        )
    return path


def _from_path(path: Path, spec: str, dataset: Dataset) -> Teacher:
    if not path.exists():
        raise InputError("no such teacher", where=spec, fix=f"{FORMS}, or an existing file")
    if path.is_dir():
        return _from_run(path, dataset)
    if path.suffix in BLACK_BOX_SUFFIXES:
        return _from_black_box(path, dataset)
    if path.suffix == ".safetensors":
        return _from_safetensors(path, path.name, dataset)
    if path.suffix in _WEIGHT_SUFFIXES:
        fix = f"pass --teacher timm:NAME --weights {path.name} (or torchvision:NAME, edgekd:wrnD-K)"
        raise InputError("weights alone do not say which architecture they are of", where=path, fix=fix)
    known = ", ".join((".safetensors", *BLACK_BOX_SUFFIXES))
    raise InputError("not a teacher that edgekd reads", where=path, fix=f"expected {known}, or {FORMS[9:]}")


def _from_run(folder: Path, dataset: Dataset) -> Teacher:
    program = folder / "programs" / "float.pt2"
    if not program.is_file():
        raise InputError("no programs/float.pt2 in this folder", where=folder, fix="give a finished run's directory")
    return _from_black_box(program, dataset)


def _from_safetensors(path: Path, name: str, dataset: Dataset) -> Teacher:
    facts = read_facts(path)
    if facts is None:
        fix = f"pass --teacher timm:NAME --weights {path.name} (or torchvision:NAME, edgekd:wrnD-K)"
        raise InputError("its metadata name no architecture", where=path, fix=fix)
    if facts["num_classes"] != dataset.num_classes:
        raise class_count_error(facts["num_classes"], dataset.num_classes, where=path)
    preprocessing = preprocessing_of(facts)
    model = build(
        facts["architecture"],
        num_classes=facts["num_classes"],
        in_channels=preprocessing.channels,
        image_size=preprocessing.image_size,
    )
    fit(model, read_state(path), num_classes=facts["num_classes"], where=path)
    return _finished(model, preprocessing, path, name=name, facts=facts)


def _from_architecture(spec: str, weights: Path | None, dataset: Dataset) -> Teacher:
    model = build(spec, num_classes=dataset.num_classes, in_channels=3)
    if weights is None:
        fix = "pass --weights FILE trained on these classes (edgekd fetches none)"
        raise InputError(f"teacher '{spec}' has no weights", fix=fix)
    state = read_state(weights)
    facts = read_facts(weights) if weights.suffix == ".safetensors" else None
    in_channels = _stem_channels(model, state)
    own_size = int(facts["image_size"]) if facts else None
    if in_channels != 3 or own_size is not None:
        model = build(spec, num_classes=dataset.num_classes, in_channels=in_channels, image_size=own_size)
    fit(model, state, num_classes=dataset.num_classes, where=weights)
    size = fixed_image_size(model) or dataset.preprocessing.image_size
    guessed = _with_channels(dataset.preprocessing, in_channels, image_size=size)
    preprocessing = preprocessing_of(facts) if facts else guessed
    return _finished(model, preprocessing, weights, name=spec, facts=facts or {"architecture": spec})


def _from_black_box(path: Path, dataset: Dataset) -> Teacher:
    own = dataset.preprocessing
    module, found = open_black_box(path, channels=own.channels, image_size=own.image_size)
    if found.num_classes != dataset.num_classes:
        raise class_count_error(found.num_classes, dataset.num_classes, where=path)
    size = found.image_size or own.image_size
    return Teacher(
        name=path.name,
        module=module.eval(),
        preprocessing=_with_channels(own, found.channels or own.channels, image_size=size),
        num_classes=found.num_classes,
        fingerprint=_fingerprint(path),
        black_box=True,
        facts={"file": path.name, "layout": found.layout, "outputs": found.outputs},
    )


def _finished(
    model: nn.Module, preprocessing: Preprocessing, path: Path, *, name: str, facts: Mapping[str, Any]
) -> Teacher:
    """Frozen, and seen to give one row of logits for one image."""
    model.eval().requires_grad_(False)
    size = preprocessing.image_size
    example = torch.zeros(1, preprocessing.channels, size, size)
    try:
        with torch.no_grad():
            logits = model(example)
    except Exception as error:  # models check their inputs in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        fix = "pass --image-size with the size it was trained at"
        raise InputError(f"'{name}' does not run on {tuple(example.shape)} ({reason})", where=path, fix=fix) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise InputError(f"'{name}' is not a classifier: its output is not (batch, classes)", where=path)
    return Teacher(
        name=name,
        module=model,
        preprocessing=preprocessing,
        num_classes=logits.shape[1],
        fingerprint=_fingerprint(path),
        facts=dict(facts),
    )


def _fingerprint(path: Path) -> str:
    """sha256 of the file that holds the weights (OpenVINO keeps them beside the graph)."""
    return sha256_of(path.with_suffix(".bin") if path.suffix == ".xml" else path)


def _stem_channels(model: nn.Module, state: State) -> int:
    """Input channels as the checkpoint's first convolution has them."""
    stem = first_convolution(model)
    weight = state.get(f"{stem[0]}.weight") if stem else None
    return int(weight.shape[1]) if weight is not None and weight.ndim == 4 else 3


def _with_channels(own: Preprocessing, channels: int, *, image_size: int) -> Preprocessing:
    """The dataset's normalisation for a teacher that takes other channels: the mean over channels, repeated."""
    mean, std = own.mean, own.std
    if channels != own.channels:
        mean, std = ((sum(v) / len(v),) * channels for v in (mean, std))
    return Preprocessing(image_size=image_size, channels=channels, mean=mean, std=std)


def _refuse_weights(weights: Path | None, spec: str) -> None:
    if weights is not None:
        raise InputError(f"teacher '{spec}' brings its own weights", where=weights, fix="leave out --weights")
