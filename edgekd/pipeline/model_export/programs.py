"""The programs that exporters convert: the float one, and one int8 program per quantisation spec that targets need."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekd.artifact import Frozen
from edgekd.errors import InputError, did_you_mean
from edgekd.export.check_reference import answering
from edgekd.files import write_json
from edgekd.pipeline.events import Events
from edgekd.pipeline.model_export.inputs import ModelInputs
from edgekd.pipeline.model_export.request import (
    CALIBRATION_IMAGES_DEFAULT,
    CALIBRATION_IMAGES_MIN,
    ModelExportSettings,
)
from edgekd.pipeline.model_export.training import trained_int8
from edgekd.pipeline.record import fingerprint
from edgekd.quant import export_float, int8_coverage, ptq, save_program
from edgekd.quant.gates import has_gates
from edgekd.quant.quantizer import has_activations, has_residuals
from edgekd.runtimes import op_report, open_model_file
from edgekd.targets.spec import QuantSpec

FLOAT = "float"
_BATCH = 32
_SNR_IMAGES = 32


class Calibration(Frozen):
    """Which images gave the ranges. sha256: over the data's fingerprint, the preprocessing and the sample indices."""

    split: str = "train"
    n: int
    seed: int
    data_fingerprint: str
    sha256: str


class ProgramFacts(Frozen):
    """One program. snr_db: int8 against float, at the logits, in torch. coverage: layers in int8, and all of them."""

    name: str
    file: str
    spec: QuantSpec | None = None
    calibration: Calibration | None = None
    snr_db: float | None = None
    coverage: tuple[int, int] | None = None
    int8_macs_share: float | None = None
    qat_epochs: float = 0.0
    qat_history: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0


@dataclass
class Programs:
    """Every program of an export by name, in memory until the folder exists."""

    built: dict[str, ExportedProgram] = field(default_factory=dict)
    facts: dict[str, ProgramFacts] = field(default_factory=dict)
    indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    saved: set[str] = field(default_factory=set)

    def save(self, folder: Path) -> None:
        """Write every program that is not written yet, and the calibration sample."""
        for name, program in self.built.items():
            path = folder / self.facts[name].file
            if name not in self.saved:
                save_program(program, path)
                evidence = op_report(open_model_file(path))
                share = evidence.int8_macs_share if evidence.macs else None
                self.facts[name] = self.facts[name].model_copy(update={"int8_macs_share": share})
                self.saved.add(name)
        if len(self.indices):
            used = next(f.calibration for f in self.facts.values() if f.calibration is not None)
            document = {**used.model_dump(mode="json"), "indices": self.indices.tolist()}
            write_json(folder / "programs" / "calibration.json", document)


def calibration_sample(inputs: ModelInputs, settings: ModelExportSettings) -> Tensor:
    """Indices of the calibration images: from the training split, stratified.

    Raises: InputError: fewer than 300 and no smaller number was asked for, or fewer than were asked for.
    """
    available, asked = len(inputs.dataset.train), settings.calibration_images
    needed = asked if asked is not None else CALIBRATION_IMAGES_MIN
    if available < needed:
        fix = f"add training images, or pass --calibration-images {available}" if available else "add training images"
        what = f"int8 needs {needed} calibration images, the training split has {available}"
        raise InputError(what, where=f"data '{inputs.dataset.name}'", fix=fix)
    return inputs.dataset.sample("train", asked or CALIBRATION_IMAGES_DEFAULT, seed=settings.seed)


def batches_of(inputs: ModelInputs, indices: Tensor) -> list[Tensor]:
    """Normalised training images (batch, channels, height, width): through the preprocessing that inference uses."""
    train, normalise = inputs.dataset.train, inputs.preprocessing.normalise
    return [normalise(train.images(part)) for part in torch.split(indices, _BATCH)]


def build_float(inputs: ModelInputs) -> Programs:
    """The float program. Raises: InputError: torch.export cannot trace the model."""
    started = time.monotonic()
    program = export_float(inputs.module, inputs.image_shape, outputs=inputs.outputs)
    facts = ProgramFacts(name=FLOAT, file=f"programs/{FLOAT}.pt2", seconds=time.monotonic() - started)
    return Programs({FLOAT: program}, {FLOAT: facts})


def idle_settings(program: ExportedProgram) -> dict[str, bool]:
    """The settings of a specification that change nothing in this model, at one value for all."""
    found = {
        "split_gates": has_gates(program),
        "residual_in_convolution": has_residuals(program),
        "activation_in_convolution": has_activations(program),
    }
    return {name: False for name, matters in found.items() if not matters}


def add_int8(
    programs: Programs,
    inputs: ModelInputs,
    settings: ModelExportSettings,
    specs: Mapping[str, QuantSpec],
    *,
    events: Events,
) -> None:
    """Quantise once per (name, spec), from one calibration sample, and train on where `qat_epochs` asks for it."""
    if not len(programs.indices):
        programs.indices = calibration_sample(inputs, settings)
    batches = batches_of(inputs, programs.indices)
    used = calibration_facts(inputs, settings, programs.indices)
    idle = idle_settings(programs.built[FLOAT])
    made: dict[QuantSpec, str] = {}
    for name, spec in specs.items():
        effective = spec.model_copy(update=idle)
        if effective in made:  # two targets want the same numbers under different specifications
            _alias(programs, made[effective], name, spec)
            continue
        made[effective] = name
        started = time.monotonic()
        history: tuple[dict[str, Any], ...] = ()
        if settings.qat_epochs:
            program, history = trained_int8(inputs, settings, spec, batches[0], events)
        else:
            program = ptq(inputs.module, batches, spec, outputs=inputs.outputs)
        programs.built[name] = program
        programs.facts[name] = ProgramFacts(
            name=name,
            file=f"programs/{name}.pt2",
            spec=spec,
            calibration=used,
            snr_db=snr_between(programs.built[FLOAT], program, torch.cat(batches)[:_SNR_IMAGES]),
            coverage=int8_coverage(program),
            qat_epochs=settings.qat_epochs,
            qat_history=history,
            seconds=time.monotonic() - started,
        )


def _alias(programs: Programs, known: str, name: str, spec: QuantSpec) -> None:
    programs.built[name] = programs.built[known]
    same = {"name": name, "spec": spec, "seconds": 0.0}  # and the same file, so that it is checked against once
    programs.facts[name] = programs.facts[known].model_copy(update=same)


def calibration_facts(inputs: ModelInputs, settings: ModelExportSettings, indices: Tensor) -> Calibration:
    """The sample's identity, as manifests carry it."""
    document = {
        "data": inputs.dataset.fingerprint,
        "split": "train",
        "preprocessing": inputs.preprocessing.to_dict(),
        "indices": indices.tolist(),
    }
    return Calibration(
        n=len(indices),
        seed=settings.seed,
        data_fingerprint=inputs.dataset.fingerprint,
        sha256=fingerprint(document),
    )


def loss_points(
    inputs: ModelInputs, settings: ModelExportSettings, reference: ExportedProgram, other: ExportedProgram
) -> float:
    """Points of top-1 accuracy that one program is below another, run in torch.

    On as many training images as test images are asked for: something is chosen by it.
    """
    train = inputs.dataset.train
    index = inputs.dataset.sample("train", settings.test_images, seed=settings.seed + 1)
    normalised, labels = inputs.preprocessing.normalise(train.images(index)), train.labels[index].numpy()
    found = [answering(program, normalised)(normalised).argmax(1).numpy() for program in (reference, other)]
    right = [int((classes == labels).sum()) for classes in found]
    return 100 * (right[0] - right[1]) / len(labels)


def snr_between(reference: ExportedProgram, other: ExportedProgram, images: Tensor) -> float:
    """Signal to noise in dB of the mean image, of the output that differs most; normalised images, one at a time."""
    from edgekd.quant.fidelity import image_db

    one, two = reference.module(check_guards=False), other.module(check_guards=False)
    with torch.inference_mode():
        pairs = [(_tensors(one(image[None])), _tensors(two(image[None]))) for image in images]
    outputs = zip(*(zip(wanted, got, strict=True) for wanted, got in pairs), strict=True)
    return min(float(torch.cat([image_db(a, b) for a, b in output]).mean()) for output in outputs)


def _tensors(result: object) -> list[Tensor]:
    found = list(result.values()) if isinstance(result, dict) else result
    return [t for t in found if isinstance(t, Tensor)] if isinstance(found, (list, tuple)) else [found]  # type: ignore[list-item]


def refuse_unknown_layers(inputs: ModelInputs, layers: tuple[str, ...]) -> None:
    """Raises: InputError: a name of `--float-layers` is neither a layer nor a part of the model; nearest ones given."""
    if not layers:
        return
    from edgekd.quant import layer_names

    modules = [name for name, _ in inputs.module.named_modules() if name]
    known = layer_names(inputs.module, inputs.image_shape)
    for layer in layers:
        if layer not in modules and not any(name == layer or name.startswith(f"{layer}.") for name in known):
            advice = did_you_mean(layer, known)
            fix = f"its layers are {', '.join(known[:6])}, ..." if advice.startswith("known:") else advice
            raise InputError(f"no layer '{layer}' in this model", where="--float-layers", fix=fix)
