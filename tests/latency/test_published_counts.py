"""Multiply-adds and parameters agree with timm's published benchmark tables, counted as those count."""

from __future__ import annotations

import pytest

from edgekd.latency.corpus import shapes_of
from edgekd.latency.published import Network
from edgekd.latency.record import record_module
from edgekd.latency.steps import steps_of

# (name, pixels, 1e9 multiply-adds, 1e6 parameters): timm's results/*.csv, rounded to two decimals there. Of those that
# were looked at four differ: Sequencer's LSTMs are not counted there, EVA-02 has 4% more parameters here, and of
# NF-ResNet (2% less) and ConvMixer (6% more multiply-adds) nobody has found out why.
PUBLISHED = [
    ("cait_xxs24_224", 224, 2.53, 11.96),
    ("coat_tiny", 224, 4.35, 5.5),
    ("davit_tiny", 224, 4.54, 28.36),
    ("coatnet_0_rw_224", 224, 4.43, 27.44),
    ("convit_tiny", 224, 1.26, 5.71),
    ("crossvit_9_240", 240, 1.85, 8.55),
    ("cspresnet50", 256, 4.54, 21.62),
    ("deit_small_patch16_224", 224, 4.61, 22.05),
    ("dla34", 224, 3.07, 15.74),
    ("dpn68", 224, 2.35, 12.61),
    ("edgenext_small", 256, 1.26, 5.59),
    ("efficientformer_l1", 224, 1.3, 12.29),
    ("efficientformerv2_s0", 224, 0.41, 3.6),
    ("efficientnet_b0", 256, 0.52, 5.29),
    ("efficientnet_lite0", 224, 0.4, 4.65),
    ("fbnetc_100", 224, 0.4, 5.57),
    ("focalnet_tiny_srf", 224, 4.42, 28.43),
    ("ghostnet_100", 224, 0.15, 5.18),
    ("hardcorenas_a", 224, 0.23, 5.26),
    ("hrnet_w18_small", 224, 1.61, 13.19),
    ("lcnet_100", 224, 0.16, 2.95),
    ("maxvit_tiny_tf_224", 224, 5.6, 30.92),
    ("mixer_b32_224", 224, 3.24, 60.29),
    ("mnasnet_100", 224, 0.33, 4.38),
    ("mobilenetv2_100", 224, 0.31, 3.5),
    ("mobilenetv3_large_100", 256, 0.29, 5.48),
    ("mobilenetv3_small_100", 224, 0.06, 2.54),
    ("mobileone_s0", 224, 1.09, 5.29),
    ("mobilevit_s", 256, 2.03, 5.58),
    ("mobilevitv2_100", 256, 1.84, 4.9),
    ("pit_ti_224", 224, 0.7, 4.85),
    ("poolformer_s12", 224, 1.82, 11.92),
    ("pvt_v2_b0", 224, 0.57, 3.67),
    ("repvit_m1_0", 224, 1.13, 7.3),
    ("res2net50_26w_4s", 224, 4.28, 25.7),
    ("resmlp_12_224", 224, 3.01, 15.35),
    ("resnet18", 288, 3.01, 11.69),
    ("resnet50", 224, 4.11, 25.56),
    ("resnetv2_50", 224, 4.11, 25.55),
    ("resnext50_32x4d", 224, 4.26, 25.03),
    ("rexnet_100", 224, 0.41, 4.8),
    ("sebotnet33ts_256", 256, 3.89, 13.7),
    ("selecsls42b", 224, 2.98, 32.46),
    ("seresnet50", 160, 2.1, 28.09),
    ("skresnet18", 224, 1.82, 11.96),
    ("swin_tiny_patch4_window7_224", 224, 4.51, 28.29),
    ("tinynet_a", 192, 0.35, 6.19),
    ("vgg16", 224, 15.47, 138.36),
    ("vit_tiny_patch16_224", 224, 1.26, 5.72),
    ("xcit_nano_12_p16_224", 224, 0.56, 3.05),
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
