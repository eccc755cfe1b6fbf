"""How much each layer loses to int8, and which few layers must stay float for the whole model to pass a bar.

One graph is calibrated once; after that a question costs a forward pass of what lies behind the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgekd.errors import CheckError
from edgekd.quant.calibration import Calibrated, calibrated, float_graph
from edgekd.quant.fidelity import image_db
from edgekd.quant.graph import Outputs
from edgekd.quant.layers import WEIGHTED, layer_of, macs_of, weighted_layers
from edgekd.quant.nodes import nodes_of
from edgekd.quant.observers import ActivationObserver, PerChannelWeightObserver
from edgekd.targets.spec import QuantSpec

# Images that a layer is judged on, and how many of them at once: every activation of a chunk is kept in memory.
IMAGES, CHUNK = 32, 8


@dataclass(frozen=True)
class LayerError:
    """snr_db: of the mean image's outputs against the float model's when this layer alone is int8; macs_share: of all
    layers' multiply-adds.
    """

    layer: str
    snr_db: float
    macs_share: float


def layer_names(model: nn.Module | ExportedProgram, image_shape: tuple[int, int, int] | None = None) -> list[str]:
    """Paths of the layers that can become int8, in execution order, as `QuantSpec.float_layers` takes them.

    image_shape: (channels, height, width); without one a model's layers come in the order of `named_modules()`.
    """
    if isinstance(model, ExportedProgram):
        return weighted_layers(model.graph_module)
    if image_shape is not None:
        return weighted_layers(float_graph(model, torch.zeros(1, *image_shape))[0])
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def sensitivity(
    model: nn.Module, batches: Iterable[Tensor], spec: QuantSpec, *, images: int = IMAGES, outputs: Outputs = "first"
) -> list[LayerError]:
    """The int8 error of each layer alone, worst first; biases uncorrected.

    batches: as for `ptq`; all of them calibrate, the first `images` of them are judged on. Layers in the
    specification's `float_layers` are not judged.
    Raises: InputError: as `ptq`.
    """
    probe = _Probe(calibrated(model, batches, spec, outputs=outputs), images)
    return sorted(probe.alone(), key=lambda error: error.snr_db)


def propose_float_layers(
    model: nn.Module,
    batches: Iterable[Tensor],
    spec: QuantSpec,
    *,
    snr_db: float,
    images: int = IMAGES,
    outputs: Outputs = "first",
) -> list[str]:
    """The fewest layers that have to stay float for the outputs to keep `snr_db`, worst first; [] when none has to.

    Layers are taken in the order of their own error, as many as it takes, then each is put back that was not needed.
    They come on top of the specification's `float_layers`.
    Raises: CheckError: not even all of them reach the bar; what is left is the input and operators between layers.
    """
    probe = _Probe(calibrated(model, batches, spec, outputs=outputs), images)
    if probe.snr_db(()) >= snr_db:
        return []
    ranked = [error.layer for error in sorted(probe.alone(), key=lambda error: error.snr_db)]
    few, enough = 0, len(ranked)
    if (best := probe.snr_db(ranked)) < snr_db:
        raise CheckError(f"with every layer float the outputs keep {best:.1f} dB, not {snr_db:g}", fix="lower the bar")
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if probe.snr_db(ranked[:middle]) >= snr_db else (middle, enough)
    return _needed(probe, ranked[:enough], snr_db)


def _needed(probe: _Probe, chosen: list[str], snr_db: float) -> list[str]:
    """Without the layers that can be int8 after all; the mildest are tried first. Long lists are left as they are."""
    if len(chosen) > 16:
        return chosen
    kept = list(chosen)
    for layer in reversed(chosen[:-1]):
        without = [name for name in kept if name != layer]
        if probe.snr_db(without) >= snr_db:
            kept = without
    return kept


class _Probe:
    """A calibrated graph whose observers are switched one call at a time, and its float activations on some images."""

    def __init__(self, observed: Calibrated, images: int) -> None:
        self.graph = observed.graph
        size = CHUNK if len(observed.batches[0]) > 1 else 1
        self.chunks = torch.split(torch.cat(observed.batches)[:images], size)
        self.modules = dict(self.graph.named_modules(remove_duplicate=False))
        self.calls = [n for n in self.graph.graph.nodes if n.op == "call_module" and self._is_observer(n)]
        self.touching = {call: self._layers_at(call) for call in self.calls}
        self.layers = {layer_of(n): 0 for n in nodes_of(self.graph, *WEIGHTED)}
        for node in nodes_of(self.graph, *WEIGHTED):
            self.layers[layer_of(node)] += macs_of(node)

    def _is_observer(self, node: fx.Node) -> bool:
        return isinstance(self.modules[str(node.target)], (ActivationObserver, PerChannelWeightObserver))

    def _layers_at(self, call: fx.Node) -> set[str]:
        """The layers whose int8 form needs this rounding; "" stands for an operator that is not a layer."""
        found = {layer_of(reader) if reader.target in WEIGHTED else "" for reader in self._readers(call)}
        if isinstance(self.modules[str(call.target)], PerChannelWeightObserver):
            return found
        return found | {self._writer(call)}

    def _readers(self, call: fx.Node) -> Iterator[fx.Node]:
        for reader in call.users:
            if reader.op == "call_module":
                yield from self._readers(reader)
            elif reader.op != "output":
                yield reader

    def _writer(self, call: fx.Node) -> str:
        """The layer that a rounded value comes from, through what is fused to it."""
        source: Any = call.args[0]
        while source.op == "call_function" and source.target not in WEIGHTED and len(source.all_input_nodes) == 1:
            source = source.args[0]
        return layer_of(source) if source.target in WEIGHTED else ""

    def alone(self) -> list[LayerError]:
        """Each layer's error with only its own input, weight and output rounded."""
        total = max(sum(self.layers.values()), 1)
        on = {layer: {call for call in self.calls if layer in self.touching[call]} for layer in self.layers}
        found: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for chunk in self.chunks:
            known = self._run(chunk, set(), {})
            wanted = self._outputs(known)
            for layer, calls in on.items():
                got = self._outputs(self._run(chunk, calls, known))
                found[layer].append(_image_db(wanted, got))
        return [
            LayerError(layer, float(torch.cat(found[layer]).mean()), macs / total)
            for layer, macs in self.layers.items()
            if on[layer]
        ]

    def snr_db(self, float_layers: Collection[str]) -> float:
        """Of the whole model with these layers float and everything else int8."""
        on = {call for call in self.calls if not self.touching[call] <= set(float_layers)}
        found = [
            _image_db(self._outputs(self._run(chunk, set(), {})), self._outputs(self._run(chunk, on, {})))
            for chunk in self.chunks
        ]
        return float(torch.cat(found).mean())

    @torch.no_grad()
    def _run(self, images: Tensor, on: set[fx.Node], known: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Every node's value with the given roundings on; what no rounding changes is taken from `known`."""
        runner = _Switched(self.graph, on, known)
        runner.run(images.to(next(self.graph.parameters()).device))
        return runner.values

    def _outputs(self, values: dict[fx.Node, Any]) -> list[Tensor]:
        return [values[node].float() for node in self.graph.graph.output_node().all_input_nodes]


class _Switched(fx.Interpreter):
    """Runs a graph with some observers rounding and the others passing."""

    def __init__(self, graph: fx.GraphModule, on: set[fx.Node], known: dict[fx.Node, Any]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.on, self.known = on, known
        self.changed: set[fx.Node] = set()
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        unchanged = n in self.known and n not in self.on and not self.changed.intersection(n.all_input_nodes)
        if unchanged:
            result = self.known[n]
        else:
            self.changed.add(n)
            result = super().run_node(n)
            if n in self.on:
                observer: Any = self.fetch_attr(str(n.target))
                result = observer.rounded(result)
        self.values[n] = result
        return result


def _image_db(wanted: list[Tensor], got: list[Tensor]) -> Tensor:
    """Of all outputs of each image together."""
    rows = ([output.double().reshape(len(output), -1) for output in outputs] for outputs in (wanted, got))
    return image_db(*(torch.cat(outputs, 1) for outputs in rows))
