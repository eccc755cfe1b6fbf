"""What a student is, as plain data: a parametric inverted-residual network that survives JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgekd.artifact import Frozen

Activation = Literal["relu", "relu6"]


class StageSpec(Frozen):
    """`depth` blocks of one width; the first has the stride.

    block: `inverted` is 1x1 expand, depthwise, 1x1 project (MobileNetV2); `fused` is a dense kxk expand, 1x1 project
    (EfficientNetV2), faster than depthwise wherever channels are few. expansion 1 leaves the expand out.
    """

    block: Literal["inverted", "fused"] = "inverted"
    channels: int = Field(ge=8, multiple_of=8)
    depth: int = Field(ge=1, le=8)
    kernel: Literal[3, 5, 7] = 3
    expansion: int = Field(default=4, ge=1, le=8)
    stride: Literal[1, 2] = 1
    squeeze_excite: bool = False


class StudentSpec(Frozen):
    """A student network. Channels are multiples of 8, which every runtime's int8 kernels want.

    >>> stage = StageSpec(channels=16, depth=1, stride=2)
    >>> sizes = {"image_size": 28, "in_channels": 1, "num_classes": 10, "stem_channels": 16, "head_channels": 64}
    >>> spec = StudentSpec(stages=(stage,), **sizes)
    >>> StudentSpec.model_validate_json(spec.model_dump_json()) == spec, spec.final_size
    (True, 14)
    """

    space: str = "inverted-residual"
    image_size: int = Field(ge=8)
    in_channels: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    stem_channels: int = Field(ge=8, multiple_of=8)
    stem_stride: Literal[1, 2] = 1
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    head_channels: int = Field(ge=8, multiple_of=8)
    activation: Activation = "relu6"

    @property
    def final_size(self) -> int:
        """Height and width of the last feature map in pixels."""
        size = -(-self.image_size // self.stem_stride)
        for stage in self.stages:
            size = -(-size // stage.stride)
        return size

    @model_validator(mode="after")
    def _map_is_not_a_point(self) -> StudentSpec:
        if self.final_size < 2:
            raise ValueError(
                f"the last feature map is {self.final_size} px for images of {self.image_size} px: fewer strides"
            )
        return self
