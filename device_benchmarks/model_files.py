"""An artifact as what is pushed to a device: which files, and what the runner there must know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import device_runner
from edgekd.device_benchmarks.contender import Contender, ExportedArtifact
from edgekd.device_benchmarks.loading import image_shape
from edgekd.errors import InputError


def exported(contender: Contender, device: str) -> Artifact:
    """The contender's file. Raises: InputError: it is a PyTorch module, which has no place on a device."""
    if isinstance(contender.source, ExportedArtifact) and contender.source.artifact.target in (
        *device_runner.RUNTIMES,
        "tensorrt",
    ):
        return contender.source.artifact
    fix = "give an exported file (.tflite, .onnx, .xml); `edgekd export` makes one of a PyTorch model"
    raise InputError(f"'{contender.name}' has no file that {device} could run", where="--on", fix=fix)


def files_of(artifact: Artifact) -> dict[str, Path]:
    """The files of an artifact by the suffix that they get on the device, the model itself first.

    Raises: InputError: one of them is missing, or the weights of an ONNX lie in another file.
    """
    path = artifact.path
    found = {path.suffix: path}
    if path.suffix == ".xml":
        found[".bin"] = path.with_suffix(".bin")
    for file in found.values():
        if not file.is_file():
            raise InputError("no such file", where=file)
    if path.with_name(f"{path.name}.data").is_file():
        raise InputError("keeps its weights in another file", where=path, fix="save it as one file (under 2 GB)")
    return found


def description(artifact: Artifact, path: str, files: dict[str, str]) -> dict[str, Any]:
    """The runner's view of an artifact whose files are at those paths, with their sha256."""
    return {
        "path": path,
        "target": artifact.target,
        "inputs": [spec.model_dump(mode="json") for spec in artifact.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in artifact.outputs],
        "sha256": artifact.sha256,
        "files": files,
        "input_shape": list(image_shape(artifact.inputs[0])),
    }
