"""What `edgekd export MODEL` was asked for, as one plain document that export.json carries."""

from __future__ import annotations

from pydantic import Field, model_validator

from edgekd.artifact import Frozen, Layout, Precision
from edgekd.export.request import IoDtype
from edgekd.targets.spec import Observer

# Fewer images leave the range of rare channels to chance.
CALIBRATION_IMAGES_MIN = 300
CALIBRATION_IMAGES_DEFAULT = 512
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
EVERY_PRECISION: tuple[Precision, ...] = (*PRECISIONS, "w8")


class ModelExportSettings(Frozen):
    """One export of one model. Paths are kept as the user wrote them.

    model, weights: as `edgekd.teachers.load_teacher` takes them, or any `.pt2` with one image input. data: as
    `edgekd.data.load_data` takes it. mean, std: of pixel / 255, over the model's own or the data's. targets: () takes
    every one that is installed (the profile's, with a profile). precisions: with `auto`, all of them are tried and the
    fastest that keeps its accuracy is chosen per target.
    calibration_images: None takes 512, or all there are from 300 on; a number is taken as it is.
    qat_epochs: of quantisation-aware training with the float model as the teacher; 0 quantises after training (PTQ).
    explain: where a bar is missed, look for the layers. float_layers: paths of layers that stay float in int8. fix:
    apply what bisection and sensitivity propose.
    test_images, check_images: of the accuracy and of the parity figures. jobs: conversions at a time, None for as many
    as cores and memory allow.
    """

    model: str
    weights: str | None = None
    data: str | None = None
    image_size: int | None = Field(default=None, ge=8, le=1024)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    targets: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = PRECISIONS
    auto: bool = False
    max_loss_points: float = Field(default=1.0, ge=0, le=100)
    profile: str | None = None
    calibration_images: int | None = Field(default=None, ge=1)
    observer: Observer = "auto"
    qat_epochs: float = Field(default=0.0, ge=0, le=1000)
    qat_learning_rate: float = Field(default=1e-4, gt=0)
    float_layers: tuple[str, ...] = ()
    fix: bool = False
    measure: bool = True
    explain: bool = True
    io_dtype: IoDtype = "auto"
    input_layout: Layout | None = None
    fold_preprocessing: bool = False
    jobs: int | None = Field(default=None, ge=1, le=64)
    cache: bool = True
    seed: int = Field(default=0, ge=0)
    skip_bad: bool = False
    test_images: int = Field(default=2000, ge=32)
    check_images: int = Field(default=256, ge=32)

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> ModelExportSettings:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        return self
