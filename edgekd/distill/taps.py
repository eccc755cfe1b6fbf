"""Taps: reading what flows inside a model, by path. Hooks live only while a forward runs, so a rewritten, copied or
reloaded model needs no rebinding and never carries a stale hook.

A tap is written `path`, `path@out` (the same) or `path@in`: a dotted module path in which a negative number counts a
container's children from its end, as in `features.-1` or `layer3.-1@in`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgekd.errors import InputError, did_you_mean


class Tap(NamedTuple):
    """A parsed tap.

    >>> parse_tap("layer3.-1@in")
    Tap(path='layer3.-1', side='in')
    """

    path: str
    side: Literal["in", "out"]


def parse_tap(text: str) -> Tap:
    """A tap from its text. Raises: InputError: no path, or a side other than `in` and `out`.

    >>> parse_tap("features.-1")
    Tap(path='features.-1', side='out')
    """
    path, _, side = text.partition("@")
    if not path or side not in ("", "in", "out"):
        raise InputError(f"tap '{text}' is not a module path with an optional @in or @out", fix="like 'layer3.-1@out'")
    return Tap(path, "in" if side == "in" else "out")


def resolve(model: nn.Module, tap: str) -> nn.Module:
    """The module a tap names. Raises: InputError: the model has no such module; the nearest names are listed."""
    module = model
    for part in parse_tap(tap).path.split("."):
        found = _child(module, part)
        if found is None:
            names = [name for name, _ in model.named_modules() if name]
            raise InputError(
                f"tap '{tap}': {type(model).__name__} has no module '{parse_tap(tap).path}'",
                fix=did_you_mean(parse_tap(tap).path, names[:200]),
            )
        module = found
    return module


def _child(module: nn.Module, part: str) -> nn.Module | None:
    if part.startswith("-") and part[1:].isdigit():
        children = list(module.children())
        return children[int(part)] if 0 < int(part[1:]) <= len(children) else None
    child = getattr(module, part, None)
    return child if isinstance(child, nn.Module) else None


def forward_with_taps(model: nn.Module, images: Tensor, taps: Iterable[str]) -> tuple[Any, dict[str, Tensor]]:
    """`model(images)` and a copy of the tensor at each tap.

    Raises: InputError: a tap names no module, or its module ran not exactly once, or gave no tensor.
    """
    wanted = tuple(dict.fromkeys(taps))
    if not wanted:
        return model(images), {}
    with _listening(model, wanted) as heard:
        output = model(images)
    for tap, tensors in heard.items():
        if len(tensors) != 1:
            times = f"ran {len(tensors)} times" if tensors else "never ran, or gave no tensor,"
            raise InputError(f"tap '{tap}': its module {times} in one forward", fix="name a module that runs once")
    return output, {tap: tensors[0] for tap, tensors in heard.items()}


@contextmanager
def _listening(model: nn.Module, taps: tuple[str, ...]) -> Iterator[dict[str, list[Tensor]]]:
    """Hooks for the length of one forward."""
    heard: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    with ExitStack() as stack:
        for tap in taps:
            module = resolve(model, tap)
            if parse_tap(tap).side == "in":
                handle = module.register_forward_pre_hook(_input_hook(heard[tap]))
            else:
                handle = module.register_forward_hook(_output_hook(heard[tap]))
            stack.callback(handle.remove)
        yield heard


def _input_hook(heard: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _module, inputs: _keep(inputs, heard)


def _output_hook(heard: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    return lambda _module, _inputs, output: _keep(output, heard)


def _keep(value: Any, heard: list[Tensor]) -> None:
    """The first tensor, copied: a later in-place op (ReLU(inplace=True)) would otherwise rewrite what was heard."""
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(first, Tensor):
        heard.append(first.clone())


class WithTaps(nn.Module):
    """A model whose forward also returns its taps: images -> (logits, {tap: tensor}).

    torch.export (non-strict) traces it with the taps as extra outputs; a quantised graph keeps those, where hooks die.
    """

    def __init__(self, model: nn.Module, taps: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(dict.fromkeys(taps))
        for tap in self.taps:
            resolve(model, tap)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(batch, channels, height, width) -> logits (batch, classes) and the taps."""
        output, taps = forward_with_taps(self.model, image, self.taps)
        return cast(Tensor, output), taps


def default_tap(model: nn.Module, example: Tensor) -> str:
    """The last feature map (batch, channels, height, width) with more than one pixel, else the last Linear's input.

    Where a container and its last child give the same map, the container is named: it survives a change inside.
    Raises: InputError: the model has neither.
    """
    maps: list[str] = []
    linears: list[str] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(_noting(name, maps, linears)).remove)
        training = model.training
        try:
            with torch.no_grad():
                model.eval()(example)
        finally:
            model.train(training)
    once = [name for name in maps if maps.count(name) == 1]
    if once:
        return once[-1]
    if linears:
        return f"{linears[-1]}@in"
    raise InputError(f"{type(model).__name__} has no feature map and no Linear to tap", fix="name a tap")


def _noting(name: str, maps: list[str], linears: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            maps.append(name)
        if isinstance(module, nn.Linear):
            linears.append(name)

    return note
