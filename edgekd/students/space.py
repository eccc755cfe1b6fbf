"""The default search space: small networks of one family, every one of which a budget may pick.

Choices: width (channels of all stages), depth per stage, expansion, kernel, and which stages use dense blocks. Strides
follow the image: 28 and 32 px keep a stride-1 stem, from 64 px on the stem halves, and the last map is 4 to 7 px.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pydantic import Field

from edgekd.artifact import Frozen
from edgekd.students.spec import Activation, StageSpec, StudentSpec

_FINAL_PX = 4  # the last map has at least this many pixels a side
_LARGE_IMAGE_PX = 64  # from here on the stem may halve without losing the object
_BASE_CHANNELS = (32, 64, 96, 160, 256)


class Family(Frozen):
    """One kind of body, laid out as EfficientNetV2: dense (`fused`) stages first, inverted residuals after them.

    The first dense stage has no expansion, later ones `fused_expansion`. At equal multiply-adds dense blocks train some
    3 times faster on a CPU, because they write a third of the activations, and reach a higher fraction of a GPU's peak;
    inverted ones do more with fewer weights. Source: Tan & Le 2021, "EfficientNetV2", section 3.2 and table 4.
    """

    fused_stages: int = Field(ge=0)
    fused_expansion: int = 2
    expansion: int = 4
    kernel: int = 3


class SearchSpace(Frozen):
    """All students for one image size and class count. widths: multipliers of the channels 32, 64, 96, 160, 256."""

    name: str = "inverted-residual"
    image_size: int = Field(ge=8)
    in_channels: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    depths: tuple[int, ...] = (1, 2, 3, 4)
    expansions: tuple[int, ...] = (3, 4, 6)
    fused_expansions: tuple[int, ...] = (2, 4)
    kernels: tuple[int, ...] = (3, 5)
    activation: Activation = "relu6"
    squeeze_excite: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of the stem, then of each stage.

        >>> space = lambda px: SearchSpace(image_size=px, in_channels=3, num_classes=10)
        >>> space(28).strides, space(32).strides, space(64).strides, space(224).strides
        ((1, 2, 2), (1, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2, 2))
        """
        halvings, size = 0, self.image_size
        while size // 2 >= _FINAL_PX and halvings < len(_BASE_CHANNELS):
            size, halvings = -(-size // 2), halvings + 1
        if self.image_size >= _LARGE_IMAGE_PX:
            return (2,) * halvings
        return (1, *(2,) * halvings) if halvings else (1, 1)

    def families(self) -> list[Family]:
        """Bodies to try: how many stages are dense, and the expansions and kernel of the rest."""
        stages = len(self.strides) - 1
        found = [Family(fused_stages=stages, fused_expansion=expansion) for expansion in self.fused_expansions]
        for fused, expansion, kernel in itertools.product(range(min(stages, 3)), self.expansions, self.kernels):
            found.append(Family(fused_stages=fused, expansion=expansion, kernel=kernel))
        return found

    def specs(self) -> Iterator[StudentSpec]:
        """Every student of the space, in a fixed order."""
        stages = len(self.strides) - 1
        # Five stages of four depths each would be a million bodies: large images vary the depth of pairs of stages.
        free = min(stages, 3)
        for family, width in itertools.product(self.families(), self.widths):
            for depths in itertools.product(self.depths, repeat=free):
                yield self.spec(family, width, _spread(depths, stages))

    def spec(self, family: Family, width: float, depths: tuple[int, ...]) -> StudentSpec:
        """One student: the family at a width, with a depth for every stage."""
        stem_stride, *strides = self.strides
        channels = [_multiple_of_16(width * base) for base in _BASE_CHANNELS[: len(strides)]]
        stages = [
            self._stage(family, index, channels=channel, stride=stride, depth=depth)
            for index, (channel, stride, depth) in enumerate(zip(channels, strides, depths, strict=True))
        ]
        return StudentSpec.model_construct(
            space=self.name,
            image_size=self.image_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            stem_channels=_multiple_of_16(width * 12),
            stem_stride=stem_stride,
            stages=tuple(stages),
            head_channels=_multiple_of_16(2 * channels[-1]),
            activation=self.activation,
        )

    def _stage(self, family: Family, index: int, *, channels: int, stride: int, depth: int) -> StageSpec:
        fused = index < family.fused_stages
        fused_expansion = 1 if index == 0 else family.fused_expansion
        return StageSpec.model_construct(
            block="fused" if fused else "inverted",
            channels=channels,
            depth=depth,
            kernel=3 if fused else family.kernel,
            expansion=fused_expansion if fused else family.expansion,
            stride=stride,
            squeeze_excite=self.squeeze_excite,
        )


def _multiple_of_16(channels: float) -> int:
    """Matrix units (AMX tiles, tensor cores, int8 dot products) waste what is not a multiple of 16 or 32.

    Measured at 28 px, batch 128, bf16, 2 x86 threads with AMX, in one run: a body of 24 and 48 channels (9.0 MMACs)
    took 1.5 times the training step of one of 32 and 64 channels (9.5 MMACs).
    """
    return max(16, int(channels / 16 + 0.5) * 16)


def _spread(depths: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """Depth for every stage from a few: (1, 2, 3) over 5 stages is (1, 1, 2, 2, 3)."""
    return tuple(depths[index * len(depths) // stages] for index in range(stages))
