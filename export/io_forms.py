"""What an artifact's input may look like, per target: which forms are refused, and the arithmetic of folded pixels."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.artifact import Frozen, Layout
from edgekd.errors import InputError
from edgekd.export.request import ExportRequest, IoDtype


class IoForms(Frozen):
    """Forms of input and output that a target's exporter writes; the first layout is the one it takes unasked.

    dtypes, folded_dtypes: legal `io_dtype` without and with `fold_preprocessing`; no folded ones: it cannot fold.
    """

    layouts: tuple[Layout, ...] = ("NCHW",)
    folded_layouts: tuple[Layout, ...] = ("NCHW",)
    dtypes: tuple[IoDtype, ...] = ("auto", "float32")
    folded_dtypes: tuple[IoDtype, ...] = ()


FORMS: dict[str, IoForms] = {
    "tflite": IoForms(
        layouts=("NHWC", "NCHW"),
        folded_layouts=("NHWC",),
        dtypes=("auto", "float32", "int8", "uint8"),
        folded_dtypes=("auto", "float32", "uint8"),
    ),
    "onnxruntime": IoForms(folded_dtypes=("auto", "uint8")),
    "openvino": IoForms(
        layouts=("NCHW", "NHWC"), folded_layouts=("NHWC", "NCHW"), folded_dtypes=("auto", "float32", "uint8")
    ),
    "coreml": IoForms(folded_dtypes=("auto", "uint8")),
    "tensorrt": IoForms(),
    "null": IoForms(),
}


def why_not_io(request: ExportRequest) -> str | None:
    """Why the target does not write the asked form of input and output, or None. Other packages' targets decide alone.

    >>> from pathlib import Path
    >>> ask = ExportRequest(target="tensorrt", precision="fp16", program=Path("p"), out=Path("o"), io_dtype="uint8")
    >>> why_not_io(ask)
    'tensorrt writes input and output as auto or float32, not uint8'
    """
    forms = FORMS.get(request.target)
    if forms is None:
        return None
    fold = request.fold_preprocessing
    layouts, dtypes = (forms.folded_layouts, forms.folded_dtypes) if fold else (forms.layouts, forms.dtypes)
    form = " with the preprocessing folded in" if fold else ""
    if not dtypes:
        return f"{request.target} takes the normalised image: the preprocessing cannot be folded in"
    if request.io_dtype not in dtypes:
        return f"{request.target} writes input and output as {' or '.join(dtypes)}{form}, not {request.io_dtype}"
    if request.input_layout is not None and request.input_layout not in layouts:
        return f"{request.target} takes {' or '.join(layouts)}{form}, not {request.input_layout}"
    if request.io_dtype in ("int8", "uint8") and request.precision != "int8" and not fold:
        return f"{request.io_dtype} input and output need an int8 program, {request.precision} has no grid for them"
    return "no preprocessing was given to fold in" if fold and not request.preprocessing else None


def layout_of(request: ExportRequest) -> Layout:
    """The input's layout: the one asked for, or the target's own."""
    forms = FORMS.get(request.target, IoForms())
    return request.input_layout or (forms.folded_layouts if request.fold_preprocessing else forms.layouts)[0]


@dataclass(frozen=True)
class PixelAffine:
    """Normalisation as one multiply and one add per channel: value = pixel * scale + offset, pixel 0..255."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in pixels: value = (pixel - mean) / std."""
        return tuple(-o / s for s, o in zip(self.scale, self.offset, strict=True))

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in pixels."""
        return tuple(1 / s for s in self.scale)


def pixel_affine(request: ExportRequest, channels: int) -> PixelAffine:
    """The request's preprocessing as `PixelAffine`.

    Raises: InputError: mean or std is missing, is not positive, or is of another number of channels.

    >>> from pathlib import Path
    >>> given = {"mean": [0.5], "std": [0.5]}
    >>> ask = ExportRequest(target="null", precision="fp32", program=Path("p"), out=Path("o"), preprocessing=given)
    >>> pixel_affine(ask, 1).mean, pixel_affine(ask, 1).std
    ((127.5,), (127.5,))
    """
    try:
        mean = [float(value) for value in request.preprocessing["mean"]]
        std = [float(value) for value in request.preprocessing["std"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the preprocessing has no usable mean and std ({error})") from error
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise InputError(f"preprocessing of mean {mean}, std {std} for a model of {channels} channels")
    return PixelAffine(tuple(1 / (255 * s) for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True)))
