"""torchao's conv-bn rewrites without the patterns that cannot match: a workaround, to go when torchao is faster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torchao.quantization.pt2e import qat_utils

aten = torch.ops.aten
HELPERS = ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper")
OPERATORS = {
    F.conv1d: aten.conv1d.default,
    F.conv2d: aten.conv2d.default,
    F.conv_transpose1d: aten.conv_transpose1d.default,
    F.conv_transpose2d: aten.conv_transpose2d.input,
}


@contextlib.contextmanager
def fast_patterns(graph: fx.GraphModule) -> Iterator[None]:
    """While open, torchao tries only patterns that the graph can hold: its kinds of convolution, on the CPU, our spec.

    convert_pt2e exports 96 patterns (4 kinds of convolution x 12 variants x match and replacement, twice that where
    there is a GPU) whatever the graph holds: 30 to 65 s. Left here are 4: our weights are per channel, our biases are
    float, and graphs are converted on the CPU in eval mode.
    """
    present = {node.target for node in graph.graph.nodes}
    helpers = {name: getattr(qat_utils, name) for name in HELPERS}
    replacements: dict[str, Any] = {name: _only_present(helper, present) for name, helper in helpers.items()}
    replacements["itertools"] = SimpleNamespace(product=_our_variants)
    originals = {name: getattr(qat_utils, name) for name in replacements}
    try:
        for name, replacement in replacements.items():
            setattr(qat_utils, name, replacement)
        yield
    finally:
        for name, original in originals.items():
            setattr(qat_utils, name, original)


def _only_present(original: Callable[..., Any], present: set[object]) -> Callable[..., Any]:
    def helper(m: fx.GraphModule, conv_fn: Any, example_inputs: Any, is_cuda: bool) -> Any:
        if is_cuda or OPERATORS.get(conv_fn) not in present:
            return m
        return original(m, conv_fn, example_inputs, is_cuda)

    return helper


def _our_variants(*_options: object) -> list[tuple[bool, bool, bool, bool]]:
    """(is_per_channel, has_bias, bias_is_quantized, bn_is_training) in place of itertools.product over all of them."""
    return [(True, True, False, False), (True, False, False, False)]
