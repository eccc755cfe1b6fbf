"""Networks trained with several branches per layer (RepVGG, MobileOne, RepViT, FastViT) with the branches merged."""

from __future__ import annotations

import copy

from torch import nn

# What such modules call the step, in the order in which timm looks: `fuse` returns the module to put in their place.
_RETURNS_NEW = ("fuse",)
_IN_PLACE = ("reparameterize", "switch_to_deploy")


def reparameterised(model: nn.Module) -> nn.Module:
    """The model with its training-time branches merged, in eval mode; the model itself where it has none.

    Source: the conventions of timm.utils.reparameterize_model (`fuse`, `reparameterize`, `switch_to_deploy`); Ding et
    al. 2021, "RepVGG", section 3.3. The given model is not changed.

    >>> layer = nn.Conv2d(1, 1, 1)
    >>> reparameterised(layer) is layer
    True
    """
    if not any(_convention(module) for module in model.modules()):
        return model
    return _merge(copy.deepcopy(model).eval())


def _convention(module: nn.Module) -> str | None:
    return next((name for name in (*_RETURNS_NEW, *_IN_PLACE) if callable(getattr(module, name, None))), None)


def _merge(module: nn.Module) -> nn.Module:
    name = _convention(module)
    if name in _RETURNS_NEW:
        merged = getattr(module, name)()
        return merged if isinstance(merged, nn.Module) else module
    if name is not None:
        getattr(module, name)()
        return module
    for child_name, child in module.named_children():
        setattr(module, child_name, _merge(child))
    return module
