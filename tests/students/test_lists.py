"""A pruned teacher keeps its weights and its shapes come from the spec alone; a zoo network may start from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekd.errors import InputError
from edgekd.students import PrunedSpec, ZooSpec, build, parse_spec
from edgekd.students.pruning import pruned
from edgekd.students.spaces import Task
from edgekd.students.spaces.pruned import specs
from edgekd.teachers import architectures

SIZES = {"image_size": 32, "in_channels": 3, "num_classes": 7}


@pytest.mark.parametrize("architecture", ["edgekd:wrn16-2", "torchvision:resnet18", "timm:mobilenetv3_small_050"])
def test_pruning_leaves_a_smaller_network_of_the_same_shapes_whatever_the_weights(architecture: str) -> None:
    spec = PrunedSpec(architecture=architecture, ratio=0.5, **SIZES)
    shapes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = build(spec)
        shapes.append({name: tuple(value.shape) for name, value in module.state_dict().items()})
        assert module.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert shapes[0] == shapes[1]
    whole = architectures.build(architecture, num_classes=7, in_channels=3)
    assert sum(p.numel() for p in module.parameters()) < 0.5 * sum(p.numel() for p in whole.parameters())


def test_what_is_left_are_the_teachers_own_weights() -> None:
    torch.manual_seed(0)
    teacher = architectures.build("edgekd:wrn10-1", num_classes=7, in_channels=3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    small = pruned(teacher, PrunedSpec(architecture="edgekd:wrn10-1", ratio=0.5, **SIZES))
    for name, conv in small.named_modules():
        if isinstance(conv, torch.nn.Conv2d):
            kept = set(conv.weight.detach().flatten().tolist())
            assert kept <= set(before[f"{name}.weight"].flatten().tolist())


def test_vision_transformers_lose_widths_of_heads_not_heads() -> None:
    spec = PrunedSpec(architecture="timm:vit_tiny_patch16_224", ratio=0.5, image_size=64, in_channels=3, num_classes=7)
    module = build(spec).eval()
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_a_space_of_ratios_survives_json_and_strangers_are_refused() -> None:
    every = specs("edgekd:wrn16-2", Task((32,), 3, 7))
    assert [parse_spec(spec.model_dump(mode="json")) for spec in every] == every
    with pytest.raises(ValueError, match="no student of kind 'tree'; known: stages, zoo, pruned"):
        parse_spec({"kind": "tree"})
    with pytest.raises(ValueError, match="less than 1"):
        parse_spec({**every[0].model_dump(), "ratio": 1.0})


def test_a_zoo_network_starts_from_a_file_and_keeps_its_own_classifier(tmp_path: Path) -> None:
    source = architectures.build("timm:lcnet_035", num_classes=1000, in_channels=3)
    save_file(source.state_dict(), str(tmp_path / "lcnet_035.safetensors"))
    spec = ZooSpec(name="timm:lcnet_035", weights=str(tmp_path / "lcnet_035.safetensors"), **SIZES)
    module = build(spec)
    assert torch.equal(module.state_dict()["conv_stem.weight"], source.state_dict()["conv_stem.weight"])
    assert module.state_dict()["classifier.weight"].shape[0] == 7
    with pytest.raises(InputError, match="the weights are of another architecture"):
        build(spec.model_copy(update={"name": "torchvision:resnet18"}))
