"""MIL operators over the spatial axes: convolution, pooling, resizing, and moving space into channels and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from edgekd.runtimes.mil_inputs import Inputs, Op, float_of, ints_of, ints_or, number_of, optional_float

# --- convolution and pooling ---


def _window_padding(i: Inputs, sizes: Sequence[int], kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """[before, after] per spatial axis in order, for the pad types custom, valid, same and same_lower."""
    kind, strides = str(i.get("pad_type", "valid")), ints_or(i, "strides", [1] * len(kernel))
    if kind == "valid":
        return [0] * (2 * len(kernel))
    if kind == "custom":
        return ints_of(i["pad"])
    pads = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        pads += [larger, smaller] if kind == "same_lower" else [smaller, larger]
    return pads


def reversed_pairs(pads: Sequence[int]) -> list[int]:
    """MIL pads the outermost axis first, torch the innermost.

    >>> reversed_pairs([1, 2, 3, 4])
    [3, 4, 1, 2]
    """
    return [value for k in range(len(pads) - 2, -1, -2) for value in pads[k : k + 2]]


def _conv(i: Inputs) -> torch.Tensor:
    x, weight = float_of(i["x"]), float_of(i["weight"])
    bias = optional_float(i, "bias")
    kernel = list(weight.shape[2:])
    dilations, strides = (ints_or(i, name, [1] * len(kernel)) for name in ("dilations", "strides"))
    x, padding = _padded(x, _window_padding(i, x.shape[2:], kernel, dilations), 0.0)
    function: Callable[..., torch.Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    groups = int(i.get("groups", 1))
    return function(x, weight, bias, stride=strides, padding=padding, dilation=dilations, groups=groups)


def _padded(x: torch.Tensor, pads: Sequence[int], value: float) -> tuple[torch.Tensor, list[int]]:
    """Leave symmetric padding to the operator (faster); do the rest here."""
    before, after = list(pads[0::2]), list(pads[1::2])
    if before == after:
        return x, before
    return F.pad(x, reversed_pairs(pads), value=value), [0] * len(before)


def _conv_transpose(i: Inputs) -> torch.Tensor:
    """Without padding, then cut to the output's size; what lies beyond the last window (output padding) is the bias."""
    x, weight, bias = float_of(i["x"]), float_of(i["weight"]), optional_float(i, "bias")
    kernel = list(weight.shape[2:])
    dilations, strides = (ints_or(i, name, [1] * len(kernel)) for name in ("dilations", "strides"))
    function: Callable[..., torch.Tensor]
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(kernel)]
    whole = function(x, weight, stride=strides, dilation=dilations, groups=int(i.get("groups", 1)))
    cut = _cut(whole, i, x.shape[2:], strides)
    return cut if bias is None else cut + bias.reshape(-1, *[1] * len(kernel))


def _cut(whole: torch.Tensor, i: Inputs, sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    rank, kind = len(sizes), str(i.get("pad_type", "valid"))
    pads = ints_of(i["pad"]) if kind == "custom" else [0] * (2 * rank)
    for k, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        full = int(whole.shape[2 + k])
        wanted = size * stride if kind.startswith("same") else full - pads[2 * k] - pads[2 * k + 1]
        if i.get("output_shape") is not None:
            wanted = ints_of(i["output_shape"])[2 + k]
        surplus = max(full - wanted, 0)
        begin = pads[2 * k] if kind == "custom" else (surplus + (kind == "same_lower")) // 2
        missing = begin + wanted - full
        if missing > 0:
            whole = F.pad(whole, [0, 0] * (rank - 1 - k) + [0, missing])
        whole = whole.narrow(2 + k, begin, wanted)
    return whole


def _strides(i: Inputs, kernel: Sequence[int]) -> list[int]:
    return ints_or(i, "strides", [1] * len(kernel))


def _max_pool(i: Inputs) -> torch.Tensor:
    x, kernel = number_of(i["x"]), ints_of(i["kernel_sizes"])
    pads = _window_padding(i, x.shape[2:], kernel, [1] * len(kernel))
    x = F.pad(x, reversed_pairs(pads), value=float("-inf")) if any(pads) else x
    function: Callable[..., torch.Tensor] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return function(x, kernel, stride=_strides(i, kernel), ceil_mode=bool(i.get("ceil_mode", False)))


def _avg_pool(i: Inputs) -> torch.Tensor:
    x, kernel = number_of(i["x"]), ints_of(i["kernel_sizes"])
    pads = _window_padding(i, x.shape[2:], kernel, [1] * len(kernel))
    function: Callable[..., torch.Tensor] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]

    def pool(values: torch.Tensor) -> torch.Tensor:
        padded = F.pad(values, reversed_pairs(pads)) if any(pads) else values
        return function(padded, kernel, stride=_strides(i, kernel), ceil_mode=bool(i.get("ceil_mode", False)))

    pooled = pool(x)
    excludes = bool(i.get("exclude_padding_from_average", False)) and any(pads)
    return pooled / pool(torch.ones_like(x)) if excludes else pooled


def _l2_pool(i: Inputs) -> torch.Tensor:
    x, kernel = number_of(i["x"]), ints_of(i["kernel_sizes"])
    squares = {**i, "x": x.square(), "exclude_padding_from_average": False}
    windows = 1
    for size in kernel:
        windows *= size
    return torch.sqrt(_avg_pool(squares) * windows)


# --- resizing ---


def _grid(mode: str, size: int, target: int) -> torch.Tensor:
    """Where each output position samples its input axis, float32 [target]. Source: `resize_bilinear`'s documentation.

    >>> [round(point, 2) for point in _grid("UNALIGN_CORNERS", 2, 5).tolist()]
    [0.0, 0.1, 0.5, 0.9, 1.0]
    """
    steps = torch.arange(target, dtype=torch.float32)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        alone = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
        points = steps * ((size - 1) / (target - 1)) if target > 1 else torch.tensor([alone])
    elif mode == "UNALIGN_CORNERS":
        points = (steps + 0.5) * (size / target) - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (steps + 0.5) * (max(1, size - 1) / target)
    else:
        points = steps * (size / target)
    return points.clamp(0, size - 1)


def _linear_along(x: torch.Tensor, axis: int, points: torch.Tensor) -> torch.Tensor:
    low = points.floor().long()
    high = torch.clamp(low + 1, max=x.shape[axis] - 1)
    shape = [-1 if k == axis else 1 for k in range(x.ndim)]
    part = (points - low).reshape(shape)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def _nearest_along(x: torch.Tensor, axis: int, points: torch.Tensor) -> torch.Tensor:
    return x.index_select(axis, torch.clamp(points.long(), max=x.shape[axis] - 1))


def _resized(x: torch.Tensor, targets: Sequence[int], *, mode: str, nearest: bool = False) -> torch.Tensor:
    """The last axes resized to `targets`, one after the other."""
    for axis, target in zip(range(x.ndim - len(targets), x.ndim), targets, strict=True):
        points = _grid(mode, x.shape[axis], target)
        # DEFAULT takes the position before, as torch's "nearest"; the others the closest
        rounded = points + (0.0 if mode == "DEFAULT" else 0.5)
        x = _nearest_along(x, axis, rounded) if nearest else _linear_along(x, axis, points)
    return x


def _scaled_sizes(i: Inputs, x: torch.Tensor) -> list[int]:
    factors = (float(i.get("scale_factor_height", 1)), float(i.get("scale_factor_width", 1)))
    return [int(size * factor) for size, factor in zip(x.shape[-2:], factors, strict=True)]


def _upsample_bilinear(i: Inputs) -> torch.Tensor:
    x, aligned = number_of(i["x"]), bool(i.get("align_corners", True))
    centred = not aligned if i.get("half_pixel_centers") is None else bool(i["half_pixel_centers"])
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _resized(x, _scaled_sizes(i, x), mode=mode)


def _upsample_nearest(i: Inputs) -> torch.Tensor:
    x = number_of(i["x"])
    return _resized(x, _scaled_sizes(i, x), mode="DEFAULT", nearest=True)


def _target_sizes(i: Inputs) -> list[int]:
    return [int(i.get("target_size_height", 1)), int(i.get("target_size_width", 1))]


def _resize_bilinear(i: Inputs) -> torch.Tensor:
    return _resized(number_of(i["x"]), _target_sizes(i), mode=str(i.get("sampling_mode", "DEFAULT")))


def _resize(i: Inputs) -> torch.Tensor:
    x, count = number_of(i["x"]), int(i["resized_dims"])
    wanted = ints_of(i["shape"])[-count:]
    targets = [size or int(x.shape[x.ndim - count + k]) for k, size in enumerate(wanted)]
    nearest = str(i.get("interpolation_mode", "LINEAR")) == "NEAREST_NEIGHBOR"
    return _resized(x, targets, mode=str(i.get("sampling_mode", "DEFAULT")), nearest=nearest)


# --- space and channels ---


def _depth_to_space(i: Inputs) -> torch.Tensor:
    """Channels are (block row, block column, channel), which is not torch's order of pixel_shuffle."""
    x, block = number_of(i["x"]), int(i["block_size"])
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // block**2, height * block, width * block)


def _space_to_depth(i: Inputs) -> torch.Tensor:
    x, block = number_of(i["x"]), int(i["block_size"])
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * block**2, height // block, width // block)


SPATIAL: dict[str, Op] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "avg_pool": _avg_pool,
    "l2_pool": _l2_pool,
    "max_pool": _max_pool,
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": lambda i: _resized(number_of(i["x"]), _target_sizes(i), mode="DEFAULT", nearest=True),
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "pixel_shuffle": lambda i: F.pixel_shuffle(number_of(i["x"]), int(i["upscale_factor"])),
    "pixel_unshuffle": lambda i: F.pixel_unshuffle(number_of(i["x"]), int(i["downscale_factor"])),
}
