"""Write down every call of one forward pass that does work: operator, shapes, attributes, and who reads what.

A recorded call knows nothing of devices or fusion; `edgekd.latency.fuse` turns calls into kernels. The same form comes
from PyTorch modules (here), ONNX files and TFLite files, with ATen's operator names as the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgekd.errors import InputError
from edgekd.profile.operators import Vocabulary


def no_static_shape(tensor: str, file: Path) -> InputError:
    """What to raise for a file whose cost depends on sizes that are given later."""
    fix = "export with fixed input sizes (edgekd predicts one shape at a time)"
    return InputError(f"tensor '{tensor}' has no static shape", where=file, fix=fix)


class Operand(NamedTuple):
    """A tensor that a call reads or writes. storage: identity of its memory; constant: known at build time."""

    storage: int
    shape: tuple[int, ...]
    constant: bool = False


class Call(NamedTuple):
    """One operator call. attributes: numbers only, by ATen's argument names. view: relabels memory, moves nothing.

    folded: reads weights only, so a deployment runtime does it at build time (a compiler does it in every pass).
    within: the operator that exporters see in its place, where ATen took one apart.
    """

    op: str
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    attributes: dict[str, Any]
    where: str = ""
    view: bool = False
    folded: bool = False
    within: str = ""


class Recording(NamedTuple):
    """A forward pass: its calls in order, the operands that came from outside, and the module's parameters.

    operators: the names of a file's operators, in its own vocabulary; of a module they are read off its calls.
    """

    calls: tuple[Call, ...]
    inputs: tuple[Operand, ...]
    parameters: int
    operators: frozenset[str] = frozenset()
    vocabulary: Vocabulary = "aten"


class _WholePools(TorchFunctionMode):
    """Knows which means are pools over whole images: ATen decomposes the pool before it dispatches the call."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not str(getattr(func, "__name__", "")).startswith("adaptive_avg_pool2d"):
            return func(*args, **(kwargs or {}))
        self._recorder.within = "adaptive_avg_pool2d"
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._recorder.within = ""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.where: list[str] = []
        self.within = ""  # the composite operator that a call is a part of
        self._constants = {_storage(t) for t in [*module.parameters(), *module.buffers()]}
        self._alive: list[Any] = []  # a freed storage's address would be reused as another tensor's identity

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        reads = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        writes = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._alive += [*reads, *writes]
        if writes:
            self._note(func, _named(func, args, kwargs or {}), reads, writes)
        return out

    def _note(self, func: Any, arguments: dict[str, Any], reads: list[Tensor], writes: list[Tensor]) -> None:
        storages = {_storage(t) for t in reads}
        name = func.overloadpacket.__name__
        in_place = name.endswith("_")
        folded = storages <= self._constants and not in_place
        view = _storage(writes[0]) in storages and not in_place
        self.calls.append(
            Call(
                op=name.rstrip("_"),
                reads=tuple(self._operand(t) for t in reads),
                writes=tuple(self._operand(t) for t in writes),
                attributes=arguments,
                where=self.where[-1] if self.where else "",
                view=view,
                folded=folded,
                within=self.within,
            )
        )
        made = {_storage(t) for t in writes}
        self._constants = self._constants | made if folded else self._constants - made if in_place else self._constants

    def _operand(self, tensor: Tensor) -> Operand:
        key = _storage(tensor)
        return Operand(key, tuple(int(n) for n in tensor.shape), key in self._constants)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments that are numbers or lists of numbers, by name."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in given.items() if _is_number(v)}


def _is_number(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (bool, int, float)) for v in value)
    return isinstance(value, (bool, int, float, str))


@contextmanager
def _plain_attention() -> Iterator[None]:
    # In eval mode nn.MultiheadAttention calls one fused kernel whose products would go uncounted.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _named_calls(module: nn.Module, stack: list[str]) -> Iterator[None]:
    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for name, child in module.named_modules():
        handles += [child.register_forward_pre_hook(enter(name)), child.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_module(module: nn.Module, input_shape: tuple[int, ...]) -> Recording:
    """Calls of one forward pass in eval mode, on fake tensors: no arithmetic is done.

    input_shape: (batch, channels, height, width).
    Raises: InputError: the module does not run on an input of that shape.

    >>> [call.op for call in record_module(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (1, 3, 4, 4)).calls]
    ['convolution', 'relu']
    """
    modes = {child: child.training for child in module.modules()}
    recorder = _Recorder(module)
    try:
        for child in modes:  # not module.eval(): an exported program refuses it
            child.training = False
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_plain_attention())
            tensors = [*module.parameters(), *module.buffers()]
            stack.enter_context(detect_fake_mode(tensors) or FakeTensorMode(allow_non_fake_inputs=True))
            image = torch.empty(input_shape)
            stack.enter_context(_named_calls(module, recorder.where))
            stack.enter_context(recorder)
            stack.enter_context(_WholePools(recorder))
            module(image)
    except Exception as error:
        raise InputError(f"cannot run {type(module).__name__} on {input_shape}: {_last_line(error)}") from error
    finally:
        for child, training in modes.items():
            child.training = training
    parameters = sum(p.numel() for p in module.parameters())
    return Recording(tuple(recorder.calls), (Operand(_storage(image), input_shape),), parameters)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
