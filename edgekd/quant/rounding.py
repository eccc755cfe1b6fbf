"""Weights rounded so that a layer's outputs stay close, not each weight: errors of one weight are made up by the next.

Rounding to the nearest code minimises the error of the weights. Inputs of a layer are correlated (neighbouring pixels,
channels), so errors that cancel in the sum cost nothing.
Source: Frantar et al. 2022, "GPTQ", section 3; Frantar & Alistarh 2022, "Optimal Brain Compression".
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgekd.quant.calibration import Calibrated
from edgekd.quant.nodes import aten, nodes_of, store, tensor_of
from edgekd.quant.observers import PerChannelWeightObserver, set_mode

# Places that are looked at per layer, over all calibration images: so many per weight of one output, within limits.
SAMPLES_PER_WEIGHT, FEWEST, MOST = 8, 1024, 8192
# Layers with more weights per output than this keep the nearest codes: their matrices take seconds each.
LARGEST = 2304
# Added to the diagonal, as a part of its mean: makes the matrix invertible and trusts the sample a little less.
DAMPING = 0.01
# Columns whose errors are spread at once over all that come behind them.
BLOCK = 64


@torch.no_grad()
def round_to_outputs(observed: Calibrated) -> None:
    """Choose the codes of every convolution and linear layer of a calibrated graph; scales stay as they are.

    The graph still computes with its float weights where observers let them pass; see `store_rounded`.
    """
    modules = dict(observed.graph.named_modules(remove_duplicate=False))
    layers: dict[fx.Node, _Inputs] = {}
    for node in nodes_of(observed.graph, aten.conv2d.default, aten.linear.default):
        call = cast(fx.Node, node.args[1])
        observer = modules.get(str(call.target)) if call.op == "call_module" else None
        if isinstance(observer, PerChannelWeightObserver) and len(cast(fx.Node, call.args[0]).users) == 1:
            weight = tensor_of(observed.graph, cast(fx.Node, call.args[0]))
            if math.prod(weight.shape[1:]) <= LARGEST:
                layers[node] = _Inputs(node, weight, observer)
    _collect(observed, layers)
    for inputs in layers.values():
        inputs.observer.chosen = inputs.rounded()


def store_rounded(graph: fx.GraphModule) -> None:
    """Replace each weight by what it was rounded to: the last step before conversion, which rounds to the nearest."""
    for node in graph.graph.nodes:
        observer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(observer, PerChannelWeightObserver) and observer.chosen is not None:
            store(graph, node.args[0], observer.chosen)


class _Inputs:
    """What one layer reads for one output value, as second moments around the mean: (groups, weights, weights).

    Around the mean, because the mean error of a channel is the bias's to correct.
    """

    def __init__(self, node: fx.Node, weight: Tensor, observer: PerChannelWeightObserver) -> None:
        self.weight, self.observer = weight, observer
        settings: list[Any] = [*node.args[3:], *([1, 1], [0, 0], [1, 1], 1)[len(node.args[3:]) :]]
        self.stride, self.padding, self.dilation, self.groups = settings
        self.width = math.prod(weight.shape[1:])
        self.square = weight.new_zeros(self.groups, self.width, self.width, dtype=torch.float64)
        self.total = weight.new_zeros(self.groups, self.width, dtype=torch.float64)
        self.origin: Tensor | None = None  # near the mean: a variance is no difference of two large numbers then
        self.count = 0

    def add(self, x: Tensor, batches: int, generator: torch.Generator) -> None:
        """Look at random places of one of so many batches."""
        samples = max(1, min(max(SAMPLES_PER_WEIGHT * self.width, FEWEST), MOST) // batches)
        patches = self._rows(x, samples, generator) if self.weight.ndim == 2 else self._patches(x, samples, generator)
        self.origin = patches.mean(0) if self.origin is None else self.origin
        patches = patches - self.origin
        self.square += torch.einsum("ngi,ngj->gij", patches, patches)
        self.total += patches.sum(0)
        self.count += len(patches)

    def _rows(self, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        rows = x.reshape(-1, 1, self.width)
        return rows[torch.randint(len(rows), (min(samples, len(rows)),), generator=generator).to(x.device)]

    def _patches(self, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """(samples, groups, weights): what the kernel covers at random positions of random images."""
        (down, right), (pad_y, pad_x), kernel = _pair(self.stride), _pair(self.padding), self.weight.shape[2:]
        padded = functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
        step_y, step_x = _pair(self.dilation)
        reach = [(size - 1) * step + 1 for size, step in zip(kernel, (step_y, step_x), strict=True)]
        places = [(size - r) // s + 1 for size, r, s in zip(padded.shape[2:], reach, (down, right), strict=True)]
        sizes = (len(x), *places)
        samples = min(samples, math.prod(sizes))  # drawn twice, a place would count as two
        drawn = [torch.randint(size, (samples,), generator=generator).to(x.device) for size in sizes]
        image, top, left = drawn[0], drawn[1] * down, drawn[2] * right
        offsets = [(i * step_y, j * step_x) for i in range(kernel[0]) for j in range(kernel[1])]
        values = [padded[image, :, top + i, left + j] for i, j in offsets]
        return torch.stack(values, dim=-1).reshape(samples, self.groups, self.width)

    def rounded(self) -> Tensor:
        """The weight on its grid; a row that would be worse off than with the nearest codes keeps those."""
        moments = self._moments()
        rows = self.weight.reshape(self.groups, -1, self.width)
        scale = self.observer.scale.reshape(self.groups, -1)
        limit = self.observer.quant_max
        nearest = torch.round(rows / scale[..., None]).clamp(-limit, limit) * scale[..., None]
        inverse = _inverse(moments)
        if inverse is None:
            return nearest.reshape(self.weight.shape)
        chosen = _compensated(rows, scale, inverse, limit)
        better = _output_error(chosen - rows, moments) < _output_error(nearest - rows, moments)
        return torch.where(better[..., None], chosen, nearest).reshape(self.weight.shape)

    def _moments(self) -> Tensor:
        """Covariance of the inputs, shrunk towards no correlation the more, the fewer samples there are per weight."""
        mean = self.total / max(self.count, 1)
        moments = self.square / max(self.count, 1) - mean[:, :, None] * mean[:, None, :]
        alone = torch.diag_embed(torch.diagonal(moments, dim1=1, dim2=2))
        return torch.lerp(moments, alone, self.width / (self.width + self.count)).float()


def _collect(observed: Calibrated, layers: dict[fx.Node, _Inputs]) -> None:
    class Collect(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in layers:
                layers[n].add(self.env[cast(fx.Node, n.args[0])], len(observed.batches), generator)
            return super().run_node(n)

    set_mode(observed.graph, "pass")
    generator = torch.Generator().manual_seed(0)
    device = next(observed.graph.parameters()).device
    for batch in observed.batches:
        Collect(observed.graph).run(batch.to(device))


def _compensated(rows: Tensor, scale: Tensor, inverse: Tensor, limit: int) -> Tensor:
    """Round column after column (groups, rows, weights) and spread each error over the columns still to come.

    inverse: upper Cholesky factor of the inverse covariance, see `_inverse`.
    """
    left = rows.clone()
    result = torch.zeros_like(rows)
    for start in range(0, rows.shape[2], BLOCK):
        stop = min(start + BLOCK, rows.shape[2])
        errors = torch.zeros_like(rows[:, :, start:stop])
        for column in range(start, stop):
            value = left[:, :, column]
            result[:, :, column] = torch.round(value / scale).clamp(-limit, limit) * scale
            error = (value - result[:, :, column]) / inverse[:, column, column, None]
            left[:, :, column:stop] -= error[:, :, None] * inverse[:, None, column, column:stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ inverse[:, start:stop, stop:]
    return result


def _inverse(moments: Tensor) -> Tensor | None:
    """Upper Cholesky factor of the inverse, damped as much as it takes; None where nothing varies or nothing helps."""
    diagonal = torch.diagonal(moments, dim1=1, dim2=2).double()
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        added = (damping * diagonal.mean(1, keepdim=True)).clamp(min=1e-12).expand_as(diagonal)
        lower, wrong = torch.linalg.cholesky_ex(moments.double() + torch.diag_embed(added))
        if not wrong.any():
            upper, wrong = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not wrong.any():
                factor: Tensor = upper.float()
                return factor
    return None


def _output_error(errors: Tensor, moments: Tensor) -> Tensor:
    """Variance of each row's output error: (groups, rows)."""
    return torch.einsum("gri,gij,grj->gr", errors, moments, errors)


def _pair(value: Any) -> tuple[int, int]:
    sizes = list(value) if isinstance(value, (list, tuple)) else [value]
    return sizes[0], sizes[-1]
