"""Count what a module computes by running it once on fake tensors: no arithmetic is done, only shapes flow.

Every aten call is seen by a dispatch mode, so any module that runs in eager mode can be traced (torchvision, timm, your
own); values that depend on weights only are treated as folded constants. `fuse.py` then merges what runtimes merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgekd.errors import InputError
from edgekd.latency.cost import GraphCost, OpKind
from edgekd.latency.fuse import Call, fuse, peak_live_elements

# Calls that only relabel or alias data, or that a runtime folds away at build time.
_FREE = frozenset(
    {"detach", "dropout", "alias", "lift_fresh", "empty", "zeros", "ones", "full", "arange", "scalar_tensor"}
)
_ACTIVATIONS = ["relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh", "leaky_relu", "elu"]
_ARITHMETIC = ["add", "sub", "rsub", "mul", "div", "pow", "sqrt", "exp", "neg", "abs", "where", "minimum", "maximum"]
_BATCH_NORM = ["native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm"]
_CLAMPS = ["clamp", "clamp_min", "clamp_max", "mish", "softplus", "prelu", "_prelu_kernel"]
_POINTWISE = frozenset([*_ACTIVATIONS, *_ARITHMETIC, *_BATCH_NORM, *_CLAMPS])
_MAX_POOL = ["max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d", "amax"]
_MEAN_POOL = ["avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"]
_POOL = frozenset([*_MAX_POOL, *_MEAN_POOL])
_MATRIX = frozenset(["mm", "bmm", "addmm", "baddbmm", "addbmm", "linear", "matmul"])


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every call that does work, with the storages it reads and writes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.where: list[str] = []
        self._constants = {_key(t) for t in [*module.parameters(), *module.buffers()]}
        self._alive: list[Any] = []  # a freed storage's address would be reused as another tensor's identity

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors_in = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        tensors_out = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._alive += [*tensors_in, *tensors_out]
        if tensors_out:
            self._note(func, args, tensors_in, tensors_out)
        return out

    def _note(self, func: Any, args: tuple[Any, ...], operands: list[Tensor], outs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        weights = [t for t in operands if _key(t) in self._constants]
        if len(weights) == len(operands):  # depends on weights only: folded at build time
            self._constants |= {_key(t) for t in outs}
            return
        in_place = name.endswith("_")
        is_view = any(_key(outs[0]) == _key(t) for t in operands) and not in_place
        name = name.rstrip("_")
        if name in _FREE or is_view:
            return
        kind, macs = _kind_and_macs(name, args, operands, outs[0])
        inputs = {_key(t): t.numel() for t in operands if _key(t) not in self._constants}
        pointwise = name in _POINTWISE and len(inputs) == 1
        batch_norm = "batch_norm" in name
        self.calls.append(
            Call(
                kind=kind,
                name=self.where[-1] if self.where and self.where[-1] else name,
                macs=macs,
                reads=tuple(inputs.items()),
                writes=(_key(outs[0]), outs[0].numel()),
                # A folded batch norm leaves one bias per channel; its scale goes into the weights before it.
                weight_elements=outs[0].shape[1] if batch_norm else sum(t.numel() for t in weights),
                fusable=pointwise,
                takes_fusion=kind in ("conv", "depthwise", "linear", "add") or pointwise,
                batch_norm=batch_norm,
                has_bias=len(weights) > 1,
            )
        )


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _kind_and_macs(name: str, args: tuple[Any, ...], operands: list[Tensor], result: Tensor) -> tuple[OpKind, int]:
    if name in ("convolution", "_convolution"):
        return _convolution(args, result)
    if name in _MATRIX:
        return "linear", result.numel() * operands[-2].shape[-1]
    if "scaled_dot_product" in name:
        query, key, value = operands[:3]
        rows = query.numel() // query.shape[-1]
        return "linear", rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    if name in _POOL:
        return "pool", 0
    return ("add" if name == "add" and len(operands) == 2 else "other"), 0


def _convolution(args: tuple[Any, ...], result: Tensor) -> tuple[OpKind, int]:
    """Kind and multiply-adds. weight: (out, in / groups, kh, kw), or (in, out / groups, kh, kw) when transposed."""
    image, weight, transposed = args[0], args[1], args[6]
    positions = image.numel() if transposed else result.numel()
    depthwise = weight.shape[1] == 1 and weight.shape[0] > 1 and args[8] > 1
    return ("depthwise" if depthwise else "conv"), positions * math.prod(weight.shape[1:])


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


def trace_cost(module: nn.Module, input_shape: tuple[int, ...]) -> GraphCost:
    """Ops, multiply-adds, parameters and peak live activations of one forward pass in eval mode.

    input_shape: (batch, channels, height, width); budgets are about batch 1.
    Raises: InputError: the module does not run on an input of that shape.

    >>> cost = trace_cost(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 4, 4))
    >>> cost.macs == 8 * 3 * 9 * 16, cost.parameters, cost.peak_activation_elements == (3 + 8) * 16
    (True, 224, True)
    """
    modes = {child: child.training for child in module.modules()}
    recorder = _Recorder(module)
    try:
        module.eval()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_plain_attention())
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            image = torch.empty(input_shape)
            stack.enter_context(_named_calls(module, recorder.where))
            stack.enter_context(recorder)
            module(image)
    except Exception as error:
        raise InputError(f"cannot run {type(module).__name__} on {input_shape}: {_last_line(error)}") from error
    finally:
        for child, training in modes.items():
            child.training = training
    ops = fuse(recorder.calls)
    parameters = sum(p.numel() for p in module.parameters())
    peak = peak_live_elements(ops, (_key(image), image.numel()))
    return GraphCost(ops=tuple(op.cost() for op in ops), parameters=parameters, peak_activation_elements=peak)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
