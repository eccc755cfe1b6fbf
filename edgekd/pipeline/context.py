"""What every stage sees: the run record, and the profile, data and teacher that its settings name, loaded once."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data import Dataset, load_data
from edgekd.errors import InputError
from edgekd.pipeline.events import Events
from edgekd.pipeline.plan import Plan, make_plan
from edgekd.pipeline.record import RunRecord
from edgekd.pipeline.settings import Settings
from edgekd.profile import HardwareProfile, load_profile
from edgekd.students import AnySpec, build, parse_spec
from edgekd.targets import load_targets
from edgekd.teachers import Teacher, load_teacher

_VERSIONED = (
    "torch",
    "torchvision",
    "torchao",
    "timm",
    "accelerate",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
)
_VERSIONED_EXTRAS = ("ai-edge-quantizer", "coremltools", "openvino", "nncf", "tensorrt-rtx-cu13-libs")


@dataclass(frozen=True)
class Inputs:
    """What the settings name, loaded: the part of a run that exists before its directory does."""

    profile: HardwareProfile
    dataset: Dataset
    teacher: Teacher
    seed: int = 0
    zoo_weights: str | None = None
    threads: int = 1
    asked_sizes: tuple[int, ...] = ()
    on: str | None = None

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Sizes of the student's input that the search picks from, px."""
        return self.asked_sizes or (self.dataset.preprocessing.image_size,)


@dataclass
class Context:
    """One run in progress."""

    record: RunRecord
    profile: HardwareProfile
    dataset: Dataset
    teacher: Teacher
    events: Events

    @property
    def settings(self) -> Settings:
        """What the user asked for."""
        return self.record.settings

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.settings.seed

    @property
    def threads(self) -> int:
        """Of one inference while measuring, which is what a block table must have been built with."""
        return self.settings.threads

    @property
    def on(self) -> str | None:
        """The device that is attached by ssh or adb; None: no other than this host."""
        return self.settings.on

    @property
    def zoo_weights(self) -> str | None:
        """The folder of checkpoints that zoo students start from."""
        return self.settings.zoo_weights

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Sizes of the student's input that the search picks from, px."""
        return self.settings.image_sizes or (self.dataset.preprocessing.image_size,)

    @property
    def tighten(self) -> float:
        """What predicted latencies are multiplied by: the last measured correction of this run."""
        corrections = self.record.corrections
        return corrections[-1] if corrections else 1.0

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.record.folder

    @cached_property
    def plan(self) -> Plan:
        """The decisions; pure, so it is made again rather than read back."""
        return plan_of(self.settings, self.profile, self.dataset, self.teacher)

    @cached_property
    def teacher_module(self) -> nn.Module:
        """The teacher on the data's normalised images."""
        return self.teacher.adapt(self.dataset.preprocessing)

    @property
    def student_dataset(self) -> Dataset:
        """The data as the selected student gets them: at the size of its input."""
        return self.dataset.at(self.student_spec().image_size)

    def student_spec(self) -> AnySpec:
        """The selected architecture. Raises: InputError: the select stage has not run."""
        return parse_spec(self.record.result("select")["spec"])

    def student(self) -> nn.Module:
        """The trained float student in eval mode."""
        from safetensors.torch import load_file

        model = build(self.student_spec())
        model.load_state_dict(load_file(self.folder / "student.safetensors"))
        return model.eval()

    def program(self, name: str) -> Path:
        """Path of `programs/NAME.pt2`."""
        return self.folder / "programs" / f"{name}.pt2"


def load_inputs(settings: Settings) -> Inputs:
    """Load what the settings name. Raises: InputError: some of it is missing or unusable, or does not fit together."""
    profile = load_profile(settings.profile)
    dataset = load_data(settings.data, image_size=settings.image_size, skip_bad=settings.skip_bad, seed=settings.seed)
    _require_readable(settings.image_sizes, dataset)
    teacher = teacher_of(settings, dataset)
    return Inputs(
        profile,
        dataset,
        teacher,
        seed=settings.seed,
        zoo_weights=settings.zoo_weights,
        threads=settings.threads,
        asked_sizes=settings.image_sizes,
        on=settings.on,
    )


def _require_readable(image_sizes: tuple[int, ...], dataset: Dataset) -> None:
    """Raises: InputError: a size is larger than the images that are read: there is nothing to see in it."""
    read, largest = dataset.preprocessing.image_size, max(image_sizes, default=0)
    if largest > read:
        what = f"{largest} px is larger than the images, which are read at {read} px"
        fix = f"give at most {read}, or read larger images with --image-size {largest}"
        raise InputError(what, where="--image-sizes", fix=fix)


def context_of(record: RunRecord, inputs: Inputs, events: Events) -> Context:
    """A context for a run directory."""
    return Context(record, inputs.profile, inputs.dataset, inputs.teacher, events)


def teacher_of(settings: Settings, dataset: Dataset) -> Teacher:
    """The teacher a run names. Raises: InputError: no teacher was given for data other than the shipped teacher's."""
    if settings.teacher is None and not dataset.name.startswith("fashion-mnist"):
        raise InputError(
            f"no teacher for '{dataset.name}'",
            where="--teacher",
            fix="the shipped teacher knows fashion-mnist only; name one, e.g. timm:resnet18 --weights FILE",
        )
    weights = Path(settings.weights) if settings.weights else None
    return load_teacher(settings.teacher, weights=weights, dataset=dataset)


def plan_of(settings: Settings, profile: HardwareProfile, dataset: Dataset, teacher: Teacher) -> Plan:
    """The pure plan of these inputs."""
    return make_plan(
        profile,
        settings,
        targets=load_targets(),
        train_images=len(dataset.train),
        image_size=dataset.preprocessing.image_size,
        data_note=dataset.note,
        teacher=teacher.name,
        gpu=torch.cuda.is_available(),
    )


def versions() -> dict[str, str]:
    """Installed versions of everything whose version can change a result."""
    found = {"edgekd": importlib.metadata.version("edgekd")}
    for name in (*_VERSIONED, *_VERSIONED_EXTRAS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sample_images(dataset: Dataset, n: int, *, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Up to n test images, uint8 (n, channels, height, width), and their labels, stratified by class."""
    index = dataset.sample("test", n, seed=seed)
    return dataset.test.images(index).numpy(), dataset.test.labels[index].numpy()


def calibration_batches(dataset: Dataset, n: int, *, seed: int, batch_size: int = 64) -> list[Tensor]:
    """Normalised training images for calibration, stratified: (batch, channels, height, width) each."""
    index = dataset.sample("train", n, seed=seed)
    return [dataset.preprocessing.normalise(dataset.train.images(part)) for part in torch.split(index, batch_size)]
