"""MIL operators that arrange, pick or make values without computing on them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from edgekd.runtimes.mil_inputs import Inputs, Op, ints_of, ints_or, number_of, tensor_of
from edgekd.runtimes.mil_spatial import reversed_pairs


def _reshape(i: Inputs) -> torch.Tensor:
    x = tensor_of(i["x"])
    return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(ints_of(i["shape"]))])


def _squeeze(i: Inputs) -> torch.Tensor:
    x = tensor_of(i["x"])
    return x.squeeze() if i.get("axes") is None else x.squeeze(tuple(ints_of(i["axes"])))


def _expand_dims(i: Inputs) -> torch.Tensor:
    x, axes = tensor_of(i["x"]), ints_of(i["axes"])
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _split(i: Inputs) -> tuple[torch.Tensor, ...]:
    x, axis = tensor_of(i["x"]), int(i["axis"])
    if i.get("split_sizes") is not None:
        return tuple(torch.split(x, ints_of(i["split_sizes"]), dim=axis))
    return tuple(torch.chunk(x, int(i["num_splits"]), dim=axis))


def _masks(i: Inputs, name: str, rank: int) -> list[int]:
    return [0] * rank if i.get(name) is None else ints_of(i[name])


def _spans(i: Inputs, x: torch.Tensor) -> list[torch.Tensor]:
    """The positions that begin, end, stride and their masks pick along each axis."""
    begin, end = ints_of(i["begin"]), ints_of(i["end"])
    strides = ints_or(i, "stride", [1] * x.ndim)
    first, last, single = (_masks(i, name, x.ndim) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    spans = []
    for axis, size in enumerate(x.shape):
        start, stop = None if first[axis] else begin[axis], None if last[axis] else end[axis]
        span = [begin[axis] % size] if single[axis] else range(size)[slice(start, stop, strides[axis])]
        spans.append(torch.tensor(list(span), dtype=torch.int64))
    return spans


def _slice_by_index(i: Inputs) -> torch.Tensor:
    x = tensor_of(i["x"])
    for axis, span in enumerate(_spans(i, x)):
        x = x.index_select(axis, span)
    single = _masks(i, "squeeze_mask", x.ndim)
    return x.squeeze(tuple(axis for axis in range(x.ndim) if single[axis]))


def _slice_update(i: Inputs) -> torch.Tensor:
    """A copy of `x` with the slice that slice_by_index would give replaced by `update`."""
    x = tensor_of(i["x"])
    spans = _spans(i, x)
    out = x.clone()
    out[torch.meshgrid(*spans, indexing="ij")] = (
        tensor_of(i["update"]).reshape([len(span) for span in spans]).to(x.dtype)
    )
    return out


def _slice_by_size(i: Inputs) -> torch.Tensor:
    x = tensor_of(i["x"])
    for axis, (begin, size) in enumerate(zip(ints_of(i["begin"]), ints_of(i["size"]), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _pad(i: Inputs) -> torch.Tensor:
    pads, mode = reversed_pairs(ints_of(i["pad"])), str(i.get("mode", "constant"))
    if mode == "constant":
        return F.pad(number_of(i["x"]), pads, value=float(i.get("constant_val", 0.0)))
    return F.pad(number_of(i["x"]), pads, mode=mode)


def _gather(i: Inputs) -> torch.Tensor:
    x, indices, axis = tensor_of(i["x"]), tensor_of(i["indices"]).long(), int(i.get("axis", 0))
    chosen = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, chosen.reshape(-1))
    return picked.reshape([*x.shape[: axis % x.ndim], *indices.shape, *x.shape[axis % x.ndim + 1 :]])


def _gather_along_axis(i: Inputs) -> torch.Tensor:
    x, indices, axis = tensor_of(i["x"]), tensor_of(i["indices"]).long(), int(i.get("axis", 0))
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _gather_nd(i: Inputs) -> torch.Tensor:
    x, indices = tensor_of(i["x"]), tensor_of(i["indices"]).long()
    if int(i.get("batch_dims", 0)):
        raise ValueError("batch_dims is not interpreted")
    return x[tuple(indices.unbind(-1))]


def _top_k(i: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    x, k = tensor_of(i["x"]), int(i.get("k", 1))
    axis, ascending = int(i.get("axis", -1)), bool(i.get("ascending", False))
    found = torch.topk(x, x.shape[axis] if k == -1 else k, dim=axis, largest=not ascending)
    return found.values, found.indices.int()


def _argsort(i: Inputs) -> torch.Tensor:
    descending = not bool(i.get("ascending", False))
    return torch.argsort(tensor_of(i["x"]), dim=int(i.get("axis", -1)), descending=descending, stable=True).int()


def _argument(largest: bool) -> Op:
    function = torch.argmax if largest else torch.argmin

    def apply(i: Inputs) -> torch.Tensor:
        return function(tensor_of(i["x"]), dim=int(i.get("axis", -1)), keepdim=bool(i.get("keep_dims", True))).int()

    return apply


def _one_hot(i: Inputs) -> torch.Tensor:
    on, off = tensor_of(i.get("on_value", 1)), tensor_of(i.get("off_value", 0))
    chosen = F.one_hot(tensor_of(i["indices"]).long(), int(i["one_hot_vector_size"])).bool()
    return torch.where(chosen, on, off).movedim(-1, int(i.get("axis", -1)))


def _cumsum(i: Inputs) -> torch.Tensor:
    x, axis = number_of(i["x"]), int(i.get("axis", 0))
    x = x.flip(axis) if i.get("reverse") else x
    sums = torch.cumsum(x, axis) - (x if i.get("exclusive") else 0)
    return sums.flip(axis) if i.get("reverse") else sums


def _band_part(i: Inputs) -> torch.Tensor:
    x, lower, upper = tensor_of(i["x"]), int(i.get("lower", -1)), int(i.get("upper", -1))
    x = x if lower < 0 else torch.triu(x, -lower)
    return x if upper < 0 else torch.tril(x, upper)


def _sliding_windows(i: Inputs) -> torch.Tensor:
    x, axis, size = tensor_of(i["x"]), int(i["axis"]), int(i["size"])
    return x.unfold(axis, size, int(i.get("stride", 1))).movedim(-1, axis % x.ndim + 1)


def _flatten2d(i: Inputs) -> torch.Tensor:
    x, axis = tensor_of(i["x"]), int(i.get("axis", 1))
    rows = 1
    for size in x.shape[: axis if axis >= 0 else x.ndim + axis]:
        rows *= size
    return x.reshape(rows, -1)


def _joined(i: Inputs) -> torch.Tensor:
    values, axis = [number_of(value) for value in i["values"]], int(i["axis"])
    if not i.get("interleave"):
        return torch.cat(values, dim=axis)
    return torch.stack(values, dim=axis % values[0].ndim + 1).flatten(axis % values[0].ndim, axis % values[0].ndim + 1)


SHAPES: dict[str, Op] = {
    "argsort": _argsort,
    "band_part": _band_part,
    "concat": _joined,
    "cumsum": _cumsum,
    "expand_dims": _expand_dims,
    "fill": lambda i: torch.full(ints_of(i["shape"]), float(i.get("value", 0))),
    "fill_like": lambda i: torch.full_like(tensor_of(i["ref_tensor"]), float(i.get("value", 0))),
    "flatten2d": _flatten2d,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "one_hot": _one_hot,
    "pad": _pad,
    "range_1d": lambda i: torch.arange(*(tensor_of(i[name]).item() for name in ("start", "end", "step"))),
    "reduce_argmax": _argument(largest=True),
    "reduce_argmin": _argument(largest=False),
    "reshape": _reshape,
    "reverse": lambda i: tensor_of(i["x"]).flip(ints_or(i, "axes", list(range(tensor_of(i["x"]).ndim)))),
    "shape": lambda i: torch.tensor(tensor_of(i["x"]).shape, dtype=torch.int32),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "sliding_windows": _sliding_windows,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda i: torch.stack([number_of(value) for value in i["values"]], dim=int(i["axis"])),
    "tile": lambda i: tensor_of(i["x"]).repeat(ints_of(i["reps"])),
    "topk": _top_k,
    "transpose": lambda i: tensor_of(i["x"]).permute(ints_of(i["perm"])),
}
