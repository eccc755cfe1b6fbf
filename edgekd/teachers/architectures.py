"""Models by name: `edgekd:...`, `timm:NAME`, `torchvision:NAME`, `torchvision:mobilenet_v3_small@0.5` with channels
times a factor. Nothing here reads weights or the network.

edgekd's own are for images of 28 to 64 px: `wrnD-K`; `resnetD` or `resnetD-W` (first stage of W channels, 16 unless
given); `vitP-W-L` (patches of P px, W channels, L blocks).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from edgekd.errors import InputError, did_you_mean
from edgekd.teachers.cifar_resnet import CifarResNet
from edgekd.teachers.wide_resnet import WideResNet

FORMS = "expected timm:NAME, torchvision:NAME or edgekd:NAME (as edgekd:wrn16-2)"
_OWN_FORMS = (
    "expected edgekd:wrnD-K with D = 6n + 4 (as wrn16-2), resnetD[-W] with D = 6n + 2, or vitP-W-L (as vit4-64-4)"
)
_VIT_HEAD = 32  # channels of an attention head
_WIDE = ("mobilenet_v2", "mobilenet_v3")  # torchvision's with a `width_mult`


def build(architecture: str, *, num_classes: int, in_channels: int, image_size: int | None = None) -> nn.Module:
    """An untrained classifier. image_size matters only to models that are made for one size (ViTs); None is their own.

    Raises: InputError: unknown name (nearest ones given), or the library cannot build it so.

    >>> type(build("edgekd:wrn16-2", num_classes=10, in_channels=1)).__name__
    'WideResNet'
    """
    source, _, name = architecture.partition(":")
    builders = {"edgekd": _build_edgekd, "timm": _build_timm, "torchvision": _build_torchvision}
    if source not in builders or not name:
        raise InputError(f"unknown architecture '{architecture}'", fix=FORMS)
    try:
        return builders[source](name, num_classes, in_channels, image_size)
    except InputError:
        raise
    except Exception as error:  # the libraries check their arguments in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot build '{architecture}' ({reason})", fix="choose another model") from error


def split_width(name: str) -> tuple[str, dict[str, float]]:
    """A torchvision name without its width, and the width as an option of the network.

    Raises: InputError: no factor above 0, or the network comes in one width.

    >>> split_width("mobilenet_v2@0.5"), split_width("resnet18")
    (('mobilenet_v2', {'width_mult': 0.5}), ('resnet18', {}))
    """
    plain, at, text = name.partition("@")
    if not at:
        return plain, {}
    if not plain.startswith(_WIDE) or re.fullmatch(r"\d+(\.\d+)?", text) is None or float(text) == 0:
        fix = f"a factor above 0, and {' or '.join(_WIDE)}"
        raise InputError(f"torchvision:{name} is no width of a network", fix=fix)
    return plain, {"width_mult": float(text)}


def fixed_image_size(model: nn.Module) -> int | None:
    """The one size in px a model takes, where it takes only one."""
    config: dict[str, Any] = getattr(model, "default_cfg", None) or {}
    if config.get("fixed_input_size"):
        own = getattr(getattr(model, "patch_embed", None), "img_size", None)
        return int((own or config["input_size"][1:])[0])
    size = getattr(model, "image_size", None)  # torchvision's VisionTransformer
    return size if isinstance(size, int) else None


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The stem: its path and the module."""
    return next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)


def _build_edgekd(name: str, num_classes: int, in_channels: int, image_size: int | None) -> nn.Module:
    if match := re.fullmatch(r"wrn(\d+)-(\d+)", name):
        if int(match[1]) >= 10 and (int(match[1]) - 4) % 6 == 0:
            return WideResNet(int(match[1]), int(match[2]), num_classes=num_classes, in_channels=in_channels)
    elif match := re.fullmatch(r"resnet(\d+)(?:-(\d+))?", name):
        return CifarResNet(int(match[1]), int(match[2] or 16), num_classes=num_classes, in_channels=in_channels)
    elif match := re.fullmatch(r"vit(\d+)-(\d+)-(\d+)", name):
        patch, width, depth = (int(part) for part in match.groups())
        return _vit(patch, width, depth, num_classes=num_classes, in_chans=in_channels, img_size=image_size or 32)
    raise InputError(f"unknown architecture 'edgekd:{name}'", fix=_OWN_FORMS)


def _vit(patch: int, width: int, depth: int, **options: int) -> nn.Module:
    """A vision transformer as in timm, with a class token and heads of 32 channels."""
    from timm.models.vision_transformer import VisionTransformer

    if width % _VIT_HEAD or options["img_size"] % patch:
        fix = f"the width a multiple of {_VIT_HEAD}, and whole patches"
        raise InputError(f"edgekd:vit{patch}-{width}-{depth} at {options['img_size']} px", fix=fix)
    heads = width // _VIT_HEAD
    model: nn.Module = VisionTransformer(patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, **options)
    return model


def _build_timm(name: str, num_classes: int, in_channels: int, image_size: int | None) -> nn.Module:
    import timm

    # Only names in timm's own registry: its "hf-hub:" and "local-dir:" forms would fetch or read other things.
    _known("timm", name.partition(".")[0], timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    own = fixed_image_size(model)
    if own is not None and image_size is not None and image_size != own:
        model = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, img_size=image_size
        )
    return model


def _build_torchvision(name: str, num_classes: int, in_channels: int, image_size: int | None) -> nn.Module:
    from torchvision import models

    name, width = split_width(name)
    _known("torchvision", name, models.list_models(module=models))
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= width
    if name.startswith("vit_") and image_size is not None:
        options["image_size"] = image_size
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    stem = first_convolution(model)
    if stem is not None and stem[1].in_channels != in_channels:
        model.set_submodule(stem[0], _with_in_channels(stem[1], in_channels))
    return model


def _with_in_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )


def _known(source: str, name: str, names: Iterable[str]) -> None:
    known = list(names)
    if name in known:
        return
    advice = did_you_mean(name, known)
    fix = f"see {source}'s list of models" if advice.startswith("known:") else advice
    raise InputError(f"unknown architecture '{source}:{name}'", fix=fix)
