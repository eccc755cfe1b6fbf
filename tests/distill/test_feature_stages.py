"""Names that fit any model find where each resolution ends, the quarters of a transformer, and the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from edgekd.data.dataset import Dataset
from edgekd.distill import Hint, SoftTarget, Stage, Term, Training, WithTaps, evaluate, run_stage
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


def test_a_short_transformer_has_a_stage_for_each_block() -> None:
    """Not the layers of its MLPs, which are more, nor the patch embedding."""
    model = models.VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=3)
    found = feature_stages(model, torch.zeros(1, 3, 8, 8))
    assert found == ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1")


def test_hugging_faces_classifiers_teach_and_learn(tiny_dataset: Dataset, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def vit(width: int) -> nn.Module:
        torch.manual_seed(width)
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=width,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=28,
                patch_size=7,
                num_channels=1,
                num_labels=10,
            )
        )

    student, teacher = vit(16), vit(32)
    example = torch.zeros(1, 1, 28, 28)
    assert [real_tap(model, "stage:-1", example) for model in (student, teacher)] == ["vit.layers.1"] * 2
    terms = [
        Term(SoftTarget(), source="teacher"),
        Term(Hint("vit.layers.1", "vit.layers.1"), source="teacher"),
    ]
    training = Training(epochs=0.2, batch_size=50, optimiser="adamw", learning_rate=1e-3, device="cpu", shift_px=1)
    before = [p.clone() for p in student.parameters()]
    run_stage(Stage("distil", tiny_dataset, {"student": student}, terms, {"teacher": teacher}, training), out=tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert evaluate(student, tiny_dataset.val, tiny_dataset.preprocessing).n == len(tiny_dataset.val)
