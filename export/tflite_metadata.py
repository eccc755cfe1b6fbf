"""TFLite metadata: labels, normalisation and descriptions inside the file, for MediaPipe Tasks and Android Studio.

A flatbuffer of its own schema (`M001`, tensorflow's metadata_schema.fbs, also in the mediapipe wheel) is stored as the
model's buffer `TFLITE_METADATA`; the labels are a zip archive appended to the file. No maintained package writes it
without TensorFlow or MediaPipe; these are the few tables an image model needs, field numbers as in the schema.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.artifact import TensorSpec

BUFFER_NAME = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
IDENTIFIER = b"M001"
# 1.0.0 wrote the first NormalizationOptions and axis labels; later parsers read them unchanged.
MIN_PARSER_VERSION = "1.0.0"
TENSOR_AXIS_LABELS = 2  # enum AssociatedFileType
COLOUR_SPACES = {1: 2, 3: 1}  # enum ColorSpaceType by channels: GRAYSCALE, RGB
IMAGE_PROPERTIES, NORMALIZATION_OPTIONS = 2, 1  # members of the unions ContentProperties and ProcessUnitOptions
Field = tuple[int, str, Any]  # number in its table, kind, value


@dataclass(frozen=True)
class Description:
    """What the metadata says. mean, std: in the units of the input tensor: (pixel - mean) / std, pixel 0..255."""

    name: str
    text: str
    image: TensorSpec
    outputs: tuple[TensorSpec, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]


def metadata_buffer(said: Description) -> bytes:
    """The metadata flatbuffer."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    subgraph = _table(
        builder,
        [
            (0, "text", said.name),
            (2, "tables", [lambda b: _image(b, said)]),
            (3, "tables", [_output_writer(output, said) for output in said.outputs]),
        ],
    )
    root = _table(
        builder,
        [
            (0, "text", said.name),
            (1, "text", said.text),
            (2, "text", "1"),
            (3, "offsets", [subgraph]),
            (4, "text", "edgekd"),
            (7, "text", MIN_PARSER_VERSION),
        ],
    )
    builder.Finish(root, file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def with_labels(model: bytes, labels: Sequence[str]) -> bytes:
    """The file with `labels.txt` appended as a zip archive, one label per line; the same bytes every time."""
    if not labels:
        return model
    stream = io.BytesIO(model)
    stream.seek(0, io.SEEK_END)
    with zipfile.ZipFile(stream, "a") as archive:
        entry = zipfile.ZipInfo(LABELS_FILE, date_time=(1980, 1, 1, 0, 0, 0))
        archive.writestr(entry, "\n".join(label.replace("\n", " ") for label in labels))
    return stream.getvalue()


def _image(builder: Any, said: Description) -> int:
    layout, shape = said.image.layout, said.image.shape
    height, width, channels = shape[1:] if layout == "NHWC" else (*shape[2:], shape[1])
    size = _table(builder, [(0, "uint32", width), (1, "uint32", height)])
    properties = _table(builder, [(0, "uint8", COLOUR_SPACES.get(channels, 0)), (1, "offset", size)])
    content = _table(builder, [(0, "uint8", IMAGE_PROPERTIES), (1, "offset", properties)])
    pixels = said.image.holds == "pixels"
    text = "pixels 0..255" if pixels else "image, (pixel - mean) / std"
    fields: list[Field] = [(0, "text", said.image.name), (1, "text", text), (3, "offset", content)]
    if said.mean:
        options = _table(builder, [(0, "floats", said.mean), (1, "floats", said.std)])
        unit = _table(builder, [(0, "uint8", NORMALIZATION_OPTIONS), (1, "offset", options)])
        low = [(0 - m) / s for m, s in zip(said.mean, said.std, strict=True)]
        high = [(255 - m) / s for m, s in zip(said.mean, said.std, strict=True)]
        stats = _table(builder, [(0, "floats", high), (1, "floats", low)])
        fields += [(4, "offsets", [unit]), (5, "offset", stats)]
    return _table(builder, fields)


def _output_writer(output: TensorSpec, said: Description) -> Callable[[Any], int]:
    def write(builder: Any) -> int:
        fields: list[Field] = [(0, "text", output.name)]
        if output.layout == "NC" and output.shape[-1] == len(said.labels):
            file = _table(
                builder,
                [(0, "text", LABELS_FILE), (1, "text", "name of each class"), (2, "int8", TENSOR_AXIS_LABELS)],
            )
            fields += [(1, "text", "logit of each class, before any softmax"), (6, "offsets", [file])]
        else:
            fields.append((1, "text", f"shape {list(output.shape)}"))
        return _table(builder, fields)

    return write


def _table(builder: Any, fields: Sequence[Field]) -> int:
    """Write one table; what it points at is written first."""
    prepared = [(number, kind, _prepared(builder, kind, value)) for number, kind, value in fields]
    builder.StartObject(max(number for number, _, _ in fields) + 1)
    for number, kind, value in prepared:
        if kind in ("uint8", "int8", "uint32"):
            getattr(builder, f"Prepend{kind.capitalize()}Slot")(number, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
    return int(builder.EndObject())


def _prepared(builder: Any, kind: str, value: Any) -> Any:
    if kind == "text":
        return builder.CreateString(value)
    if kind == "floats":
        builder.StartVector(4, len(value), 4)
        for number in reversed(value):
            builder.PrependFloat32(float(number))
        return builder.EndVector()
    if kind in ("offsets", "tables"):
        offsets = [entry(builder) for entry in value] if kind == "tables" else value
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    return value
