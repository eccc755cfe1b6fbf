"""What is timed: plain data that a worker process turns into one loaded model. Nothing here loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekd.artifact import Artifact, Frozen

TorchMode = Literal["eager", "compile", "both"]
TORCH_MODES: tuple[TorchMode, ...] = ("eager", "compile", "both")


class TorchModule(Frozen):
    """What all torch modules have. compiled: through `torch.compile` with its defaults, instead of eager."""

    compiled: bool = False


class TeacherModule(TorchModule):
    """A teacher as its user runs it today: the fp32 torch module, eager, in its own preprocessing.

    spec, weights: as `edgekd.teachers.load_teacher` takes them (None: the teacher that ships with edgekd).
    classes and the preprocessing are those of the dataset it is loaded for; no image is read.
    """

    kind: Literal["teacher"] = "teacher"
    spec: str | None = None
    weights: Path | None = None
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    dataset_name: str = "benchmark"


class StudentModule(TorchModule):
    """A student as a torch module, eager: its StudentSpec JSON and, if given, its safetensors weights."""

    kind: Literal["student"] = "student"
    spec_file: Path
    weights: Path | None = None


class ZooModule(TorchModule):
    """A torchvision or timm model, eager fp32. Without `weights` (safetensors, .pt) they are random: same speed."""

    kind: Literal["zoo"] = "zoo"
    library: Literal["torchvision", "timm"]
    name: str
    weights: Path | None = None
    image_size: int | None = None
    num_classes: int | None = None


class ExportedArtifact(Frozen):
    """An artifact in its runtime. options: as `edgekd.runtimes.open_session` takes them. A bare file becomes an
    artifact through `edgekd.runtimes.open_model_file`.
    """

    kind: Literal["artifact"] = "artifact"
    artifact: Artifact
    options: dict[str, Any] = Field(default_factory=dict)


class Replay(Frozen):
    """The null device: answers with recorded samples (ns), in order and cyclically, and spends no time on them."""

    kind: Literal["replay"] = "replay"
    wall_ns: tuple[int, ...] = Field(min_length=1)
    cpu_ns: tuple[int, ...] = ()
    load_ms: float = 1.0
    peak_rss_mib: float = 1.0


Source = Annotated[TeacherModule | StudentModule | ZooModule | ExportedArtifact | Replay, Field(discriminator="kind")]


class Contender(Frozen):
    """One named thing to time at batch 1.

    input_shape: NCHW, or None where the model knows. threads: CPU threads of one inference, None for the set's.
    affinity: logical CPUs to pin its process to; empty leaves the scheduler free.
    """

    name: str = Field(min_length=1)
    source: Source
    input_shape: tuple[int, int, int, int] | None = None
    threads: int | None = Field(default=None, ge=1)
    affinity: tuple[int, ...] = ()


def with_torch(contender: Contender, how: TorchMode) -> list[Contender]:
    """A torch module eager, compiled or both; anything else as it is.

    >>> zoo = Contender(name="x, torch fp32 eager", source=ZooModule(library="timm", name="x"))
    >>> [c.name for c in with_torch(zoo, "both")]
    ['x, torch fp32 eager', 'x, torch fp32 compile']
    """
    if not isinstance(contender.source, TorchModule) or how == "eager":
        return [contender]
    source = contender.source.model_copy(update={"compiled": True})
    name = f"{contender.name.removesuffix(' eager')} compile"
    compiled = contender.model_copy(update={"name": name, "source": source})
    return [contender, compiled] if how == "both" else [compiled]


def precision_of(source: Source) -> str | None:
    """What is timed at: an artifact's own precision, fp32 for a torch module, None for a recording."""
    if isinstance(source, ExportedArtifact):
        return source.artifact.precision
    return None if isinstance(source, Replay) else "fp32"


def of_artifact(artifact: Artifact, *, name: str = "", options: dict[str, Any] | None = None) -> Contender:
    """A contender for an exported artifact, named `TARGET-PRECISION` unless told."""
    source = ExportedArtifact(artifact=artifact, options=options or {})
    return Contender(name=name or f"{artifact.target}-{artifact.precision}", source=source)
