"""A PyTorch contender as a file that a device can run: exported here, fp32, in the runtime it is compared in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from edgekd.artifact import Artifact
from edgekd.device_benchmarks.contender import Contender, ExportedArtifact, of_artifact
from edgekd.device_benchmarks.loading import module_of
from edgekd.export import ExportRequest, default_cache, export_one
from edgekd.quant import export_float
from edgekd.quant.program import save_program

DEFAULT_TARGET = "onnxruntime"


def for_device(contenders: list[Contender], target: str | None, folder: Path) -> list[Contender]:
    """The same contenders with every PyTorch module replaced by its fp32 export, under a name that says so.

    target: the runtime; None takes that of the first contender that is exported already, else ONNX Runtime.
    folder: for the files. Raises: InputError, ConversionError: a module cannot be loaded or exported.
    """
    files = [c.source.artifact.target for c in contenders if isinstance(c.source, ExportedArtifact)]
    runtime = target or next(iter(files), DEFAULT_TARGET)
    runtime = DEFAULT_TARGET if runtime == "tensorrt" else runtime
    return [_exported(c, runtime, folder / str(number)) for number, c in enumerate(contenders)]


def _exported(contender: Contender, target: str, folder: Path) -> Contender:
    if isinstance(contender.source, ExportedArtifact):
        return contender
    module, shape = module_of(contender)
    artifact = exported_float(module, shape[1:], target, folder)
    return of_artifact(artifact, name=f"{contender.name.partition(', torch')[0]}, {target} fp32, exported here")


def exported_float(module: nn.Module, shape: Sequence[int], target: str, folder: Path) -> Artifact:
    """A module as an fp32 file of a runtime, in a new folder. shape: of its input, without the batch.

    Raises: InputError, ConversionError: it cannot be traced or converted.
    """
    folder.mkdir(parents=True)
    program = save_program(export_float(module.eval(), tuple(shape)), folder / "float.pt2")
    request = ExportRequest(target=target, precision="fp32", program=program, out=folder / target)
    return export_one(request, log=folder / "export.log", cache=default_cache())
