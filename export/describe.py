"""What every exporter says of its result: tensors, content hash, size. Hashes cover every file a runtime needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact, TensorSpec
from edgekd.export.request import ExportRequest
from edgekd.files import sha256_of, size_bytes_of

MANIFEST_NAME = "artifact.json"
INPUT_NAME = "image"


def describe(
    request: ExportRequest,
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    notes: Sequence[str] = (),
) -> Artifact:
    """The artifact at `path`, hashed and measured."""
    return Artifact(
        target=request.target,
        precision=request.precision,
        path=path,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        size_bytes=sum(size_bytes_of(file) for file in parts_of(path)),
        sha256=content_sha256(path),
        notes=tuple(notes),
    )


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files (or the folder) that make up an artifact: OpenVINO's `.xml` has its weights in a `.bin` beside it.

    >>> [p.name for p in parts_of(Path("a/model.tflite"))]
    ['model.tflite']
    """
    weights = path.with_suffix(".bin")
    return (path, weights) if path.suffix == ".xml" and weights.is_file() else (path,)


def content_sha256(path: Path) -> str:
    """Hex digest of an artifact: `sha256_of` its file or folder, or a digest of its parts' where it has several."""
    parts = parts_of(path)
    if len(parts) == 1:
        return sha256_of(path)
    return hashlib.sha256("".join(f"{sha256_of(part)}  {part.name}\n" for part in parts).encode()).hexdigest()


def image_spec(shape: Sequence[int], *, dtype: str = "float32", name: str = INPUT_NAME, **more: Any) -> TensorSpec:
    """The image input; `shape` is (batch, channels, height, width) unless `layout="NHWC"` says otherwise."""
    return TensorSpec(name=name, shape=tuple(shape), dtype=dtype, layout=more.pop("layout", "NCHW"), **more)


def output_spec(name: str, shape: Sequence[int], dtype: str = "float32", **more: Any) -> TensorSpec:
    """One output: (batch, classes), or anything else, its axes in the program's order.

    >>> output_spec("logits", (1, 10)).layout, output_spec("out", (1, 21, 64, 64)).layout
    ('NC', 'ANY')
    """
    return TensorSpec(name=name, shape=tuple(shape), dtype=dtype, layout="NC" if len(shape) == 2 else "ANY", **more)
