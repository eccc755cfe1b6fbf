"""Networks by name, with random weights: enough to count what they cost."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgekd.errors import InputError, did_you_mean
from edgekd.teachers.architectures import split_width


def build_named(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> nn.Module:
    """`torchvision:NAME` or `timm:NAME` as an untrained module in eval mode. Nothing is downloaded.

    `torchvision:mobilenet_v2@0.5` has half the channels. image_size matters for networks whose position tables have a
    fixed size (most vision transformers).
    Raises: InputError: no such library or network; the nearest names are given.

    >>> type(build_named("torchvision:resnet18")).__name__
    'ResNet'
    """
    library, _, network = name.partition(":")
    builders = {"torchvision": _torchvision, "timm": _timm}
    if library not in builders or not network:
        raise InputError(f"no model '{name}'", fix="write torchvision:NAME or timm:NAME, as torchvision:mobilenet_v2")
    return builders[library](network, image_size, num_classes).eval()


def _torchvision(network: str, image_size: int | None, num_classes: int) -> nn.Module:
    from torchvision import models

    network, width = split_width(network)
    if network not in models.list_models():
        raise InputError(f"torchvision has no '{network}'", fix=did_you_mean(network, models.list_models()))
    # These would fill gigabytes with careful random numbers that nobody reads.
    plain: dict[str, Any] = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
    plain |= width
    if network.startswith("vit_") and image_size:
        plain["image_size"] = image_size
    module: nn.Module = models.get_model(network, weights=None, num_classes=num_classes, **plain)
    return module


def _timm(network: str, image_size: int | None, num_classes: int) -> nn.Module:
    import timm

    if not timm.is_model(network):
        raise InputError(f"timm has no '{network}'", fix=did_you_mean(network, timm.list_models()))
    module: nn.Module
    try:
        module = timm.create_model(network, pretrained=False, num_classes=num_classes, img_size=image_size)
    except TypeError:  # convolutional networks take any size and no such argument
        module = timm.create_model(network, pretrained=False, num_classes=num_classes)
    return module
