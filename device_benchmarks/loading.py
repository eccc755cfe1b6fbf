"""Inside a worker: a contender's source becomes one loaded model with `feed`, `invoke` and `read`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.artifact import Artifact, Holds, TensorSpec
from edgekd.device_benchmarks.contender import (
    Contender,
    ExportedArtifact,
    Replay,
    Source,
    StudentModule,
    TeacherModule,
    ZooModule,
)
from edgekd.errors import InputError, did_you_mean
from edgekd.files import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekd.runtimes import Executed, FloatArray, Session
    from edgekd.runtimes.session import Images

_PACKAGE = {
    "tflite": "ai_edge_litert.interpreter",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "null": "torch",
}


@dataclass(frozen=True)
class Loaded:
    """A model ready to run: its runtime's name, and the artifact's sha256 where it is one.

    compile_ms: the part of loading that was compiling; None where the runtime does not tell them apart.
    """

    session: Session
    input_shape: tuple[int, ...]
    runtime: str
    sha256: str | None = None
    holds: Holds = "normalised"
    compile_ms: float | None = None


def runtime_of(source: Source) -> str:
    """The runtime's name for a table: torch, tflite, onnxruntime, openvino, ..."""
    match source:
        case ExportedArtifact():
            return "torch" if source.artifact.target == "null" else source.artifact.target
        case Replay():
            return "replay"
        case _:
            return "torch"


def import_runtime(source: Source) -> None:
    """Import what the source needs, so that its load time is the model's and not Python's. Missing ones speak later."""
    name = runtime_of(source)
    try:
        importlib.import_module(_PACKAGE.get(name, "torch" if name == "torch" else "edgekd.runtimes"))
        importlib.import_module("edgekd.runtimes")
        if isinstance(source, ZooModule):
            importlib.import_module(source.library)
    except ImportError:
        return


def load(contender: Contender, *, threads: int) -> Loaded:
    """Load the model on `threads` threads. Raises: InputError: it cannot be found, read or run here."""
    source = contender.source
    if isinstance(source, ExportedArtifact):
        return _from_artifact(source.artifact, threads=threads, options=source.options)
    return _eager(contender, module_of(contender), threads=threads)


def module_of(contender: Contender) -> tuple[nn.Module, tuple[int, ...]]:
    """The PyTorch module that a contender names, and its input's shape [1, C, H, W].

    Raises: InputError: it names none, or one that cannot be found or read.
    """
    match contender.source:
        case TeacherModule() as source:
            return _teacher(source)
        case StudentModule() as source:
            return _student(source)
        case ZooModule() as source:
            return _zoo(source)
        case _:
            raise InputError("not a PyTorch module", where=contender.name)


def example_image(shape: tuple[int, ...], holds: Holds = "normalised") -> np.ndarray[Any, np.dtype[np.float32]]:
    """The same image for every contender of a shape, float32: standard normal (no denormals, no special zeros), or
    whole pixel values 0..255 where the model normalises them itself.
    """
    rng = np.random.default_rng(0)
    if holds == "pixels":
        return rng.integers(0, 256, shape).astype(np.float32)
    return rng.standard_normal(shape, dtype=np.float32)


def _from_artifact(artifact: Artifact, *, threads: int, options: dict[str, Any]) -> Loaded:
    from edgekd.runtimes import open_session

    session = open_session(artifact, threads=threads, options=options)
    spec = artifact.inputs[0]
    name = runtime_of(ExportedArtifact(artifact=artifact))
    compile_ms = getattr(session, "compile_ms", None)
    return Loaded(session, image_shape(spec), name, artifact.sha256, spec.holds, compile_ms)


def image_shape(spec: TensorSpec) -> tuple[int, ...]:
    """NCHW, free sizes taken as 1."""
    shape = tuple(spec.shape[i] for i in (0, 3, 1, 2)) if spec.layout == "NHWC" else spec.shape
    return tuple(1 if size < 1 else size for size in shape)


class EagerSession:
    """An fp32 torch module called as its user calls it, in inference mode. compiled: what is called instead of it."""

    executed: Executed = "runtime"
    note = ""

    def __init__(self, module: nn.Module, compiled: Callable[..., Any] | None = None) -> None:
        self._module: Callable[..., Any] = module if compiled is None else compiled
        self.module = module if compiled is None else None

    def feed(self, images: Images) -> torch.Tensor:
        import torch

        return torch.from_numpy(images.copy())

    def invoke(self, fed: torch.Tensor) -> Any:
        import torch

        with torch.inference_mode():
            return self._module(fed)

    def read(self, raw: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        return next(iter(self.read_all(raw).values()))

    def read_all(self, raw: Any) -> dict[str, FloatArray]:
        if isinstance(raw, dict):
            named = dict(raw)
        elif isinstance(raw, tuple | list):
            named = {f"output_{number}": values for number, values in enumerate(raw)}
        else:
            named = {"logits": raw}
        return {name: values.detach().float().numpy().copy() for name, values in named.items()}

    def close(self) -> None:
        del self._module, self.module


def _eager(contender: Contender, made: tuple[nn.Module, tuple[int, ...]], *, threads: int) -> Loaded:
    import torch

    torch.set_num_threads(threads)
    module, shape = made
    module, shape = module.eval().requires_grad_(False), contender.input_shape or shape
    if not getattr(contender.source, "compiled", False):
        return Loaded(EagerSession(module), shape, "torch")
    session, compile_ms = _compiled(module, shape)
    return Loaded(session, shape, "torch", compile_ms=compile_ms)


def _compiled(module: nn.Module, shape: tuple[int, ...]) -> tuple[EagerSession, float]:
    """By torch.compile, which works at the first call; that call's time in ms.

    Raises: InputError: it cannot (no C++ compiler, or a model that it does not take).
    """
    import torch

    session = EagerSession(module, torch.compile(module))
    image = session.feed(example_image(shape))
    start = time.perf_counter()
    try:
        session.invoke(image)
    except Exception as error:  # its back ends raise whatever their compilers do
        fix = "it needs a C++ compiler; time it eager"
        raise InputError(f"torch.compile cannot compile it ({' '.join(str(error).split())[:200]})", fix=fix) from error
    return session, 1e3 * (time.perf_counter() - start)


def _teacher(source: TeacherModule) -> tuple[nn.Module, tuple[int, ...]]:
    import torch

    from edgekd.data import Dataset, Preprocessing, TensorSplit
    from edgekd.teachers import load_teacher

    preprocessing = Preprocessing.from_dict(source.preprocessing)
    size, channels = preprocessing.image_size, preprocessing.channels
    none = TensorSplit(torch.empty(0, channels, size, size, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    dataset = Dataset(source.dataset_name, source.classes, none, none, none, preprocessing, fingerprint="")
    teacher = load_teacher(source.spec, weights=source.weights, dataset=dataset)
    own = teacher.preprocessing
    return teacher.module, (1, own.channels, own.image_size, own.image_size)


def _student(source: StudentModule) -> tuple[nn.Module, tuple[int, ...]]:
    from edgekd.students import build, parse_spec

    spec = parse_spec(read_json(source.spec_file))
    module: nn.Module = build(spec)
    _fill(module, _state_dict(source.weights) if source.weights else None, source.weights)
    return module, (1, spec.in_channels, spec.image_size, spec.image_size)


def _zoo(source: ZooModule) -> tuple[nn.Module, tuple[int, ...]]:
    from edgekd.teachers.architectures import split_width

    build, known, default_size = _zoo_library(source.library)
    name, width = split_width(source.name) if source.library == "torchvision" else (source.name, {})
    if name not in known:
        fix = did_you_mean(name, known)
        raise InputError(f"no {source.library} model '{name}'", fix=fix if len(fix) < 300 else "")
    module = build(name, width if source.num_classes is None else {**width, "num_classes": source.num_classes})
    state = _state_dict(source.weights) if source.weights else None
    if state is not None and source.num_classes is None and (classes := _other_classes(module, state)):
        module = build(name, {**width, "num_classes": classes})
    _fill(module, state, source.weights)
    channels, size = default_size(module)
    side = source.image_size or size
    return module, (1, channels, side, side)


_Build = Callable[[str, dict[str, Any]], "nn.Module"]


def _zoo_library(library: str) -> tuple[_Build, list[str], Callable[[nn.Module], tuple[int, int]]]:
    if library == "timm":
        import timm

        def size_of(module: Any) -> tuple[int, int]:
            channels, height, _ = (getattr(module, "default_cfg", None) or {}).get("input_size", (3, 224, 224))
            return channels, height

        return lambda name, options: timm.create_model(name, pretrained=False, **options), timm.list_models(), size_of
    from torchvision import models

    return (
        lambda name, options: models.get_model(name, weights=None, **options),
        models.list_models(),
        lambda module: (3, 299 if type(module).__name__ == "Inception3" else 224),
    )


def _other_classes(module: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """Classes of a checkpoint made for fewer or more than the module has: a classifier ends with its head's bias."""
    name, bias = list(module.state_dict().items())[-1]
    found = state.get(name)
    return int(found.shape[0]) if found is not None and found.ndim == 1 and found.shape != bias.shape else None


def _fill(module: nn.Module, state: dict[str, torch.Tensor] | None, weights: Path | None) -> None:
    if state is None:
        return
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights do not fit the model ({str(error)[:200]})", where=weights) from error


def _state_dict(weights: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch
    from safetensors.torch import load_file

    if not weights.is_file():
        raise InputError("no such file", where=weights)
    if weights.suffix == ".safetensors":
        tensors: dict[str, torch.Tensor] = load_file(weights)
        return tensors
    try:
        document = torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        fix = "save the state_dict alone, or as safetensors"
        raise InputError("holds more than tensors, which is not loaded", where=weights, fix=fix) from error
    return dict(document.get("state_dict", document))
