"""Multiply-adds and parameters agree with timm's published benchmark tables, counted as those count."""

from __future__ import annotations

import pytest

from edgekd.latency.corpus import shapes_of
from edgekd.latency.published import Network
from edgekd.latency.record import record_module
from edgekd.latency.steps import steps_of

# (name, pixels, 1e9 multiply-adds, 1e6 parameters): timm's results/*.csv, rounded to two decimals there.
PUBLISHED = [
    ("deit_small_patch16_224", 224, 4.61, 22.05),
    ("dla34", 224, 3.07, 15.74),
    ("edgenext_small", 256, 1.26, 5.59),
    ("efficientformer_l1", 224, 1.3, 12.29),
    ("efficientnet_b0", 256, 0.52, 5.29),
    ("mixer_b32_224", 224, 3.24, 60.29),
    ("mobilenetv3_large_100", 256, 0.29, 5.48),
    ("mobilevit_s", 256, 2.03, 5.58),
    ("poolformer_s12", 224, 1.82, 11.92),
    ("repvit_m1_0", 224, 1.13, 7.3),
    ("resnet18", 288, 3.01, 11.69),
    ("resnext50_32x4d", 224, 4.26, 25.03),
    ("seresnet50", 160, 2.1, 28.09),
    ("vgg16", 224, 15.47, 138.36),
]


@pytest.mark.parametrize(("name", "pixels", "gmacs", "parameters"), PUBLISHED)
def test_counts_agree_with_published_ones_within_one_percent(
    name: str, pixels: int, gmacs: float, parameters: float
) -> None:
    recording = record_module(shapes_of(Network(f"timm:{name}", pixels, pixels)), (1, 3, pixels, pixels))
    steps, _ = steps_of(recording)
    assert recording.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    # timm counts with fvcore, which charges 2 per element of a batch norm and 5 per element of another norm.
    norms = sum({"batch_norm": 2, "norm": 5}.get(step.role, 0) * step.write[1] for step in steps)
    assert (sum(step.macs for step in steps) + norms) / 1e9 == pytest.approx(gmacs, rel=0.01, abs=0.005)
