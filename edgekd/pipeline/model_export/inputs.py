"""Load what an export is about: the model, the data it is calibrated and checked on, and the preprocessing between."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.data import Dataset, Preprocessing, load_data
from edgekd.errors import CheckError, InputError
from edgekd.files import sha256_of
from edgekd.pipeline.model_export.request import ModelExportSettings
from edgekd.profile import HardwareProfile, load_profile
from edgekd.quant import adopt_program, adopted_shape
from edgekd.quant.graph import Outputs, named_outputs
from edgekd.teachers import load_teacher

# What a trained net's input looks like: a standard deviation near 1 and a mean near 0, in units of that deviation.
MEAN_FAR, STD_LOW, STD_HIGH = 3.0, 0.05, 10.0
_SAMPLE = 64


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """A model in eval mode with what surrounds it.

    outputs: whether one output is exported or all of them. labelled: whether the first output is [1, classes] of the
    data's classes, so that accuracy can be counted. notes: what a reader of the result must know.
    """

    name: str
    module: nn.Module
    fingerprint: str
    dataset: Dataset
    preprocessing: Preprocessing
    outputs: Outputs
    labelled: bool
    profile: HardwareProfile | None
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        size = self.preprocessing.image_size
        return self.preprocessing.channels, size, size

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return sum(p.numel() for p in self.module.parameters())


@dataclass(frozen=True, eq=False)
class _Model:
    """A model before the data are known to fit it. own: whether its file says how its input is made."""

    name: str
    module: nn.Module
    fingerprint: str
    dataset: Dataset
    preprocessing: Preprocessing
    own: bool
    outputs: Outputs


def load_inputs(settings: ModelExportSettings) -> ModelInputs:
    """Load everything that settings name; nothing is written.

    Raises: InputError: some of it is missing, unusable, or does not fit together. CheckError: the model gives NaN.
    """
    profile = load_profile(settings.profile) if settings.profile is not None else None
    model = _program(settings) if Path(settings.model).suffix == ".pt2" else _teacher(settings)
    preprocessing = overridden(model.preprocessing, settings)
    _refuse_bad_weights(model.module, settings.model)
    found = _answers(model, preprocessing)
    first = next(iter(found.values()))
    labelled = first.ndim == 2 and first.shape[1] == model.dataset.num_classes
    notes = [model.dataset.note] if model.dataset.note else []
    if not (model.own or settings.mean or settings.std):
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (preprocessing.mean, preprocessing.std))
        notes.append(f"preprocessing taken from the data (mean {mean}; std {std}): pass --mean and --std if it is not")
    if not labelled:
        shape = list(first.shape)
        notes.append(f"no accuracy: the first output is {shape}, the data have {model.dataset.num_classes} classes")
    return ModelInputs(
        name=model.name,
        module=model.module,
        fingerprint=model.fingerprint,
        dataset=model.dataset,
        preprocessing=preprocessing,
        outputs=model.outputs,
        labelled=labelled,
        profile=profile,
        notes=(*notes, *range_warnings(model.dataset, preprocessing)),
    )


def _program(settings: ModelExportSettings) -> _Model:
    """A user's own torch.export program."""
    path = Path(settings.model).expanduser()
    if settings.weights is not None:
        raise InputError("a .pt2 program brings its own weights", where=settings.weights, fix="leave out --weights")
    channels, height, width = adopted_shape(path)
    if height != width:
        raise InputError(f"takes images of {height}x{width}", where=path, fix="edgekd's images are square")
    if settings.image_size not in (None, height):
        fix = "leave out --image-size, or export the program at that size"
        raise InputError(f"is fixed to {height} px, not {settings.image_size}", where=path, fix=fix)
    module = adopt_program(path)
    if any("quantize" in str(node.target) for node in module.program.graph.nodes):
        raise InputError("is an int8 program already", where=path, fix="give the float program it was made from")
    dataset = _data(settings, height)
    if dataset.preprocessing.channels != channels:
        what = f"takes {channels} channels, the data '{dataset.name}' have {dataset.preprocessing.channels}"
        raise InputError(what, where=path, fix="pass --data with such images")
    return _Model(path.stem, module, sha256_of(path), dataset, dataset.preprocessing, own=False, outputs="all")


def _teacher(settings: ModelExportSettings) -> _Model:
    """A named architecture with weights, or a .safetensors that names its own."""
    dataset = _data(settings, settings.image_size)
    weights = Path(settings.weights) if settings.weights else None
    try:
        teacher = load_teacher(settings.model, weights=weights, dataset=dataset)
    except InputError as error:
        what = error.what.replace("the teacher has", "the model has").replace("teacher '", "model '")
        raise InputError(what, where=error.where, fix=error.fix.replace("--teacher ", "edgekd export ")) from error
    own = teacher.preprocessing
    if teacher.black_box:
        raise InputError("is exported already", where=settings.model, fix="give the PyTorch model it was made from")
    if settings.image_size not in (None, own.image_size):
        raise InputError(f"was trained at {own.image_size} px, not {settings.image_size}", where=settings.model)
    if own.image_size != dataset.preprocessing.image_size:
        dataset = _data(settings, own.image_size)
    if own.channels != dataset.preprocessing.channels:
        what = f"takes {own.channels} channels, the data '{dataset.name}' have {dataset.preprocessing.channels}"
        raise InputError(what, where=settings.model, fix="pass --data with such images")
    name = teacher.name.replace(":", "-").removesuffix(".safetensors")
    return _Model(name, teacher.module, teacher.fingerprint, dataset, own, own="mean" in teacher.facts, outputs="first")


def _data(settings: ModelExportSettings, image_size: int | None) -> Dataset:
    return load_data(settings.data, image_size=image_size, skip_bad=settings.skip_bad, seed=settings.seed)


def overridden(own: Preprocessing, settings: ModelExportSettings) -> Preprocessing:
    """The preprocessing with `--mean` and `--std` in its place.

    Raises: InputError: a value is in pixel units, or there are not as many as channels.
    """
    mean = _per_channel("--mean", settings.mean, own.mean)
    std = _per_channel("--std", settings.std, own.std)
    for option, values in (("--mean", mean), ("--std", std)):
        if max(abs(v) for v in values) > 1:
            given = ",".join(f"{v:g}" for v in values)
            meant = ",".join(f"{v / 255:.4g}" for v in values)
            what = f"{option} {given} is in pixel units; edgekd's are parts of 255"
            raise InputError(what, fix=f"did you mean {option} {meant}?")
    return Preprocessing(image_size=own.image_size, channels=own.channels, mean=mean, std=std)


def _per_channel(option: str, given: tuple[float, ...] | None, own: tuple[float, ...]) -> tuple[float, ...]:
    if given is None:
        return own
    values = given * len(own) if len(given) == 1 else given
    if len(values) != len(own):
        raise InputError(f"{option} has {len(given)} values for {len(own)} channels", fix="give one, or one a channel")
    return values


def range_warnings(dataset: Dataset, preprocessing: Preprocessing) -> tuple[str, ...]:
    """What is odd about the normalised training images: their statistics lie far from mean 0 and deviation 1."""
    index = torch.linspace(0, len(dataset.train) - 1, min(_SAMPLE, len(dataset.train))).long()
    images = preprocessing.normalise(dataset.train.images(index))
    mean, std = float(images.mean()), float(images.std())
    if abs(mean) <= MEAN_FAR * max(std, STD_LOW) and STD_LOW <= std <= STD_HIGH:
        return ()
    said = f"the normalised training images have mean {mean:.3g} and standard deviation {std:.3g}"
    return (f"WRONG INPUT RANGE? {said}, far from 0 and 1: check --mean and --std (parts of 255)",)


def _refuse_bad_weights(module: nn.Module, where: str) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"'{name}' holds NaN or infinity", where=where, fix="use an earlier checkpoint")


def _answers(model: _Model, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """The outputs on one test image. Raises: CheckError: one is NaN. InputError: the model does not run on it."""
    image = preprocessing.normalise(model.dataset.test.images([0]))
    try:
        with torch.no_grad():
            result: Any = copy.deepcopy(model.module)(image)
    except Exception as error:  # models check their inputs in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"does not run on {tuple(image.shape)} ({reason})", where=model.name) from error
    found = named_outputs(result)
    for name, value in found.items():
        if not bool(torch.isfinite(value).all()):
            what = f"output '{name}' is NaN or infinite on a test image"
            raise CheckError(what, where=model.name, fix="check its weights, --mean and --std")
    return found
