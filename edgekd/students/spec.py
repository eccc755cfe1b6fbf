"""What a student is, as plain data that survives JSON: a network of stages, one of a zoo, or a pruned teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from edgekd.artifact import Frozen
from edgekd.errors import InputError
from edgekd.files import read_json

Activation = Literal["relu", "relu6", "hardswish"]
BlockKind = Literal["inverted", "fused", "basic", "attention"]
HEAD_DIM = 16  # channels of one attention head


class StageSpec(Frozen):
    """`depth` blocks of one width; the first has the stride.

    block: `inverted` is 1x1 expand, depthwise, 1x1 project (MobileNetV2); `fused` is a dense kxk expand, 1x1 project
    (EfficientNetV2), faster than depthwise wherever channels are few. expansion 1 leaves the expand out. `basic` is
    two dense kxk convolutions (He et al. 2016) and has no expansion. `attention` is self-attention over the pixels and
    a two-layer perceptron of 1x1 convolutions, behind a strided 3x3 convolution where the shape changes (LeViT).
    """

    block: BlockKind = "inverted"
    channels: int = Field(ge=8, multiple_of=8)
    depth: int = Field(ge=1, le=8)
    kernel: Literal[3, 5, 7] = 3
    expansion: int = Field(default=4, ge=1, le=8)
    stride: Literal[1, 2] = 1
    squeeze_excite: bool = False

    @model_validator(mode="after")
    def _parts_agree(self) -> StageSpec:
        if self.block == "basic" and self.expansion != 1:
            raise ValueError(f"a basic block has no expansion, got {self.expansion}")
        if self.block == "attention" and (self.channels % HEAD_DIM or self.squeeze_excite):
            raise ValueError(f"an attention block has a multiple of {HEAD_DIM} channels and no squeeze_excite")
        return self


class StudentSpec(Frozen):
    """A student network. Channels are multiples of 8, which every runtime's int8 kernels want.

    >>> stage = StageSpec(channels=16, depth=1, stride=2)
    >>> sizes = {"image_size": 28, "in_channels": 1, "num_classes": 10, "stem_channels": 16, "head_channels": 64}
    >>> spec = StudentSpec(stages=(stage,), **sizes)
    >>> StudentSpec.model_validate_json(spec.model_dump_json()) == spec, spec.final_size
    (True, 14)
    """

    kind: Literal["stages"] = "stages"
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


class ZooSpec(Frozen):
    """A network of timm or torchvision by name. weights: a checkpoint that it starts from; None starts at random."""

    kind: Literal["zoo"] = "zoo"
    space: str = "zoo"
    name: str
    image_size: int = Field(ge=8)
    in_channels: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    weights: str | None = None


class PrunedSpec(Frozen):
    """A teacher's architecture with a fraction of the channels of every layer gone, counted in multiples of round_to.

    Which channels go is decided by their weights; how many, and so the module, by this spec alone.
    """

    kind: Literal["pruned"] = "pruned"
    space: str = "pruned"
    architecture: str
    ratio: float = Field(gt=0, lt=1)
    round_to: int = Field(default=8, ge=1)
    image_size: int = Field(ge=8)
    in_channels: int = Field(ge=1)
    num_classes: int = Field(ge=2)


AnySpec = StudentSpec | ZooSpec | PrunedSpec
_KINDS: dict[str, type[AnySpec]] = {"stages": StudentSpec, "zoo": ZooSpec, "pruned": PrunedSpec}


def parse_spec(document: Any) -> AnySpec:
    """A spec from plain data; without a kind it is one of stages.

    Raises: ValueError: no such kind, or (pydantic's) a key or value that is none.

    >>> sizes = {"image_size": 32, "in_channels": 3, "num_classes": 10}
    >>> parse_spec({"kind": "zoo", "name": "timm:lcnet_050", **sizes}).kind
    'zoo'
    """
    kind = document.get("kind", "stages") if isinstance(document, dict) else "stages"
    if kind not in _KINDS:
        raise ValueError(f"kind: no student of kind {kind!r}; known: {', '.join(_KINDS)}")
    return _KINDS[kind].model_validate(document)


def read_spec(file: Path) -> AnySpec:
    """A student from its file. Raises: InputError: there is none, or it is no student."""
    try:
        return parse_spec(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"not a student ({key}: {first['msg']})", where=file) from error
    except ValueError as error:
        raise InputError(f"not a student ({error})", where=file) from error
