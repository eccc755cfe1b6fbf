"""A teacher with channels removed from every layer: what is left keeps its weights, so feature maps pair one to one.

torch-pruning follows which channels of which layers go together. How many go depends on the spec alone (the same
fraction of every group, rounded), so a spec builds the same shapes again whatever the weights were.
Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from edgekd.errors import InputError
from edgekd.students.spec import PrunedSpec


def pruned(module: nn.Module, spec: PrunedSpec) -> nn.Module:
    """The module, changed in place, without the channels of least L2 norm (over each group of layers).

    Raises: InputError: its layers cannot be followed.
    """
    import torch_pruning

    image = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)
    training = module.training
    module.eval()
    attentions: list[Any] = [child for child in module.modules() if _is_attention(child)]
    for attention in attentions:
        attention.fused_attn = False  # the fused kernel hides which channels meet
    heads = {attention.qkv: attention.num_heads for attention in attentions}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it notes every parameter that no layer owns
            pruner = torch_pruning.pruner.BasePruner(
                module,
                image,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=spec.ratio,
                ignored_layers=_classifiers(module, spec.num_classes),
                round_to=spec.round_to,
                num_heads=heads,
                prune_head_dims=bool(heads),
            )
            pruner.step()
            _mend(attentions, pruner)
            with torch.no_grad():
                module(image)
    except Exception as error:  # it traces and rewrites; a model that it cannot follow fails anywhere
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        fix = "leave 'pruned' out of --space"
        raise InputError(f"cannot be pruned ({reason})", where=spec.architecture, fix=fix) from error
    for attention in attentions:
        attention.fused_attn = True
    return module.train(training)


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "qkv") and hasattr(module, "num_heads") and hasattr(module, "fused_attn")


def _mend(attentions: list[Any], pruner: Any) -> None:
    """timm's attention keeps its sizes in attributes."""
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
        attention.attn_dim = attention.num_heads * attention.head_dim
        attention.scale = attention.head_dim**-0.5


def _classifiers(module: nn.Module, num_classes: int) -> list[nn.Module]:
    """The last layer that gives the classes: its outputs stay."""
    found: list[nn.Module] = [
        child
        for child in module.modules()
        if (isinstance(child, nn.Linear) and child.out_features == num_classes)
        or (isinstance(child, nn.Conv2d) and child.out_channels == num_classes)
    ]
    return found[-1:]
