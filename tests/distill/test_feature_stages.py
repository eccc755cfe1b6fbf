"""Names that fit any model find where each resolution ends, the quarters of a transformer, and the classifier."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from edgekd.distill import WithTaps
from edgekd.distill.feature_stages import feature_stages, real_tap
from edgekd.errors import InputError


def test_a_resnet_has_a_stage_for_each_resolution() -> None:
    model = models.resnet18(weights=None)
    assert feature_stages(model, torch.zeros(1, 3, 64, 64)) == ("relu", "layer1", "layer2", "layer3", "layer4")
    assert real_tap(model, "stage:-1", torch.zeros(1, 3, 64, 64)) == "layer4"
    assert real_tap(model, "head", torch.zeros(1, 3, 64, 64)) == "fc@in"
    assert real_tap(model, "layer3.-1@in", torch.zeros(1, 3, 64, 64)) == "layer3.-1@in"


def test_a_transformers_stages_are_the_quarters_of_its_blocks() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5)
    example = torch.zeros(1, 3, 32, 32)
    assert feature_stages(model, example) == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
    assert real_tap(model, "head", example) == "head@in"


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_the_taps_found_can_be_read(name: str) -> None:
    model, example = timm.create_model(name, num_classes=5), torch.zeros(1, 3, 64, 64)
    stages = feature_stages(model, example)
    _, taps = WithTaps(model.eval(), stages)(example)
    sizes = [taps[stage].shape[2] for stage in stages]
    assert len(stages) >= 4
    assert sizes == sorted(sizes, reverse=True)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_a_linear_has_no_head() -> None:
    with pytest.raises(InputError, match="tap 'head': Conv2d has no Linear"):
        real_tap(nn.Conv2d(1, 2, 1), "head", torch.zeros(1, 1, 4, 4))
