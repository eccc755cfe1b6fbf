"""Quantisation-aware training: a torch.export graph with fake-quantise modules, used like any other module."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

from edgekd.errors import InputError, did_you_mean
from edgekd.quant.admission import require_usable
from edgekd.quant.fake_quantize import GridFakeQuantize
from edgekd.quant.fast_patterns import fast_patterns
from edgekd.quant.gates import split_gates
from edgekd.quant.graph import trace
from edgekd.quant.nodes import aten, nodes_of, set_argument, tensor_of
from edgekd.quant.quantizer import BATCH_NORM, COMPUTE, EdgeQuantizer
from edgekd.quant.reparameterise import reparameterised
from edgekd.quant.rewrites import fold_scales
from edgekd.targets.spec import QuantSpec

# Positions in aten.batch_norm(input, weight, bias, mean, var, training, momentum, eps, cudnn); dropout(x, p, train).
BN_MEAN, BN_TRAINING, BN_MOMENTUM, BN_EPS = 3, 5, 6, 7
DROPOUT_TRAIN = 2
# Modules that leave out whole branches by chance in train mode: torchvision's, and timm's and transformers'.
RANDOM_DEPTH = ("StochasticDepth", "DropPath")
# What torchao's patterns of a convolution and its batch norm are written with, whatever eps the batch norm has.
PATTERN_EPS = 1e-5
# The same operators under names that torchao's patterns do not know.
HIDDEN: dict[Any, Any] = {aten.conv1d.default: torch.conv1d, aten.conv2d.default: torch.conv2d}


class QatModel(nn.Module):
    """A model in quantisation-aware training; forward returns what the original's forward returned.

    In train mode ranges follow the data; in eval mode activation ranges stand still, so that evaluating changes
    nothing. Weight ranges always are those of the weights. Works under autocast; deepcopy and state_dict work (prepare
    the same model again, then load). pickle does not, as for every graph module.
    """

    frozen: Tensor  # uint8 [batch norm statistics, activation ranges]; a buffer, so that a checkpoint carries it

    def __init__(self, graph: fx.GraphModule, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.graph = graph
        self.image_shape = image_shape
        self.register_buffer("frozen", torch.zeros(2, dtype=torch.uint8))
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
        self.train(True)

    def forward(self, image: Tensor) -> Any:
        """Normalised images (batch, channels, height, width) to logits, or to (logits, {tap: tensor})."""
        for quantiser in self.fake_quantisers():
            quantiser.fresh = True
        return self.graph(image)

    def train(self, mode: bool = True) -> QatModel:
        """Switch modes by rewriting the graph's own literals; torchao's switch would reset dropout's p to 0.5."""
        super().train(mode)
        bn_frozen, ranges_frozen = (bool(flag) for flag in self.frozen.tolist())
        norms, drops = (
            nodes_of(self.graph, *BATCH_NORM),
            nodes_of(self.graph, aten.dropout.default, aten.dropout_.default),
        )
        changed = [set_argument(node, BN_TRAINING, mode and not bn_frozen) for node in norms]
        changed += [set_argument(node, DROPOUT_TRAIN, mode) for node in drops]
        if any(changed):
            self.graph.recompile()
        for quantiser in self.fake_quantisers():
            quantiser.observing = quantiser.is_per_channel or (mode and not ranges_frozen)
        return self

    def freeze_bn_statistics(self) -> None:
        """From now on batch norms use their running statistics in train mode too (late in QAT: Krishnamoorthi 2018)."""
        self.frozen[0] = 1
        self.train(self.training)

    def freeze_observers(self) -> None:
        """From now on activation ranges stand still in train mode too."""
        self.frozen[1] = 1
        self.train(self.training)

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Let activation ranges see a batch without training: running statistics, no dropout, no gradient."""
        mode = self.training
        self.eval()
        for quantiser in self.fake_quantisers():
            quantiser.observing = True
        self(images)
        self.train(mode)

    def fake_quantisers(self) -> Iterator[GridFakeQuantize]:
        """Every fake-quantise module, once."""
        return (module for module in self.graph.modules() if isinstance(module, GridFakeQuantize))


def _after_load(model: nn.Module, _keys: object) -> None:
    model.train(model.training)


class _KeepTaps(nn.Module):
    """The model with its input named `image` and only the wanted taps among its outputs."""

    def __init__(self, model: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.model, self.taps = model, tuple(taps)

    def forward(self, image: Tensor) -> Any:
        result = self.model(image)
        if isinstance(result, Tensor):
            return result
        logits, signals = result
        for tap in self.taps:
            if tap not in signals:
                raise InputError(f"the model returns no tap '{tap}'", fix=did_you_mean(tap, signals))
        return logits, {name: signals[name] for name in self.taps or signals}


def prepare_qat(
    model: nn.Module, example: Tensor, spec: QuantSpec, *, taps: Sequence[str] = (), quantise_output: bool = True
) -> QatModel:
    """A copy of the model as int8 will compute it, in train mode, on the model's device.

    model: forward returns logits, or (logits, {tap: tensor}); the taps stay outputs until `convert` cuts them.
    example: normalised images (batch, channels, height, width) of any batch; the first ranges are theirs, so give real
    ones. Height and width are fixed from here on; the batch is not.
    taps: which of the model's taps to keep; () keeps all.
    Branches that are left out by chance (stochastic depth, drop path) are always taken.
    Raises: InputError: the example is no batch of images, a tap is unknown, or the model cannot be traced or quantised.
    """
    if example.ndim != 4 or not example.shape[0] or not example.is_floating_point():
        raise InputError(
            f"example of shape {tuple(example.shape)}, {example.dtype}",
            fix="expected float (batch, channels, height, width)",
        )
    require_usable(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    copied = _without_random_depth(_KeepTaps(copy.deepcopy(reparameterised(model)), taps).cpu().train())
    images = example.detach().cpu()
    # torch.export would take a batch of 1 for a constant.
    graph = trace(copied, images if len(images) > 1 else images.repeat(2, 1, 1, 1), dynamic_batch=True)
    _refuse_chance(graph)
    fold_scales(graph, trainable=True)
    if spec.split_gates:
        split_gates(graph)
    prepared = _prepare(graph, EdgeQuantizer(spec, training=True, quantise_output=quantise_output))
    qat = QatModel(prepared, tuple(images.shape[1:])).to(device)
    qat.observe(images.to(device))
    return qat


def _without_random_depth(model: nn.Module) -> nn.Module:
    """Every branch always taken: what is drawn while tracing would be drawn in the deployed program too."""
    for module in model.modules():
        if type(module).__name__ in RANDOM_DEPTH:
            module.eval()
    return model


def _refuse_chance(graph: fx.GraphModule) -> None:
    """Raises: InputError: the traced model draws random numbers, and not by a dropout, which `train` can switch."""
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op == "call_function" and any(part in name for part in ("bernoulli", ".rand", "normal_functional")):
            what = f"'{node.name}' draws random numbers while training ({name})"
            raise InputError(what, fix="draw them in nn.Dropout or in a module named DropPath or StochasticDepth")


class _HidingFloat(Quantizer):  # type: ignore[misc]  # torchao ships no types
    """Annotates as the quantizer does, then hides the convolutions that stay float from torchao.

    It rewrites every convolution with a batch norm for training and can write only the quantised ones back.
    """

    def __init__(self, quantizer: EdgeQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        annotated = self.quantizer.annotate(model)
        for node in self.quantizer.kept_float:
            node.target = HIDDEN.get(node.target, node.target)
        return annotated

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to refuse."""


def show_hidden(graph: fx.GraphModule) -> None:
    """Write the convolutions that stayed float as the graph's other convolutions are written, in place."""
    shown = {hidden: target for target, hidden in HIDDEN.items()}
    for node in nodes_of(graph, *shown):
        node.target = shown[node.target]
    graph.recompile()


def _prepare(graph: fx.GraphModule, quantizer: EdgeQuantizer) -> fx.GraphModule:
    literals = {_statistics(node): node.args[BN_MOMENTUM : BN_EPS + 1] for node in nodes_of(graph, *BATCH_NORM)}
    with fast_patterns(graph):
        prepared = cast(fx.GraphModule, prepare_qat_pt2e(graph, _HidingFloat(quantizer)))
    for name in ("train", "eval"):  # torchao shadows both with methods that only raise
        prepared.__dict__.pop(name, None)
    for norm in nodes_of(prepared, *BATCH_NORM):
        _restore_literals(norm, *cast(tuple[float, float], literals[_statistics(norm)]))
    prepared.recompile()
    _check_batch_norms(prepared)
    return prepared


def _statistics(norm: fx.Node) -> str:
    """The name of the running mean: what a batch norm is known by before and after its pattern is rewritten."""
    return str(cast(fx.Node, norm.args[BN_MEAN]).target)


def _restore_literals(norm: fx.Node, momentum: float, eps: float) -> None:
    """prepare_qat_pt2e rewrites conv-bn with momentum .1 and eps 1e-5, in the batch norm and in the weight's scale."""
    set_argument(norm, BN_MOMENTUM, momentum)
    set_argument(norm, BN_EPS, eps)
    variance = cast(fx.Node, norm.args[BN_MEAN + 1])
    for user in list(variance.users):
        if user.target is aten.add.Tensor:
            set_argument(user, 1, eps)


def eps_into_variance(graph: fx.GraphModule) -> None:
    """Give every batch norm the eps of torchao's patterns and its variance the rest, in place; the same function.

    convert_pt2e folds with the patterns' eps: of a channel with a variance of 1e-4 and an eps of 1e-3 it would make
    three times what was trained (efficientnet_b0 has such channels, and eps 1e-3).
    """
    norms = nodes_of(graph, *BATCH_NORM)
    variances = {cast(fx.Node, norm.args[BN_MEAN + 1]).target: norm for norm in norms}  # a shared module has several
    for norm in variances.values():
        tensor_of(graph, cast(fx.Node, norm.args[BN_MEAN + 1])).add_(cast(float, norm.args[BN_EPS]) - PATTERN_EPS)
    for norm in norms:
        _restore_literals(norm, cast(float, norm.args[BN_MOMENTUM]), PATTERN_EPS)
    graph.recompile()


def _check_batch_norms(graph: fx.GraphModule) -> None:
    """A tap on a convolution's own output keeps its batch norm from folding, and the deployed graph would differ.

    A batch norm that was not fused reads a fake-quantised tensor, except there.
    """
    for norm in nodes_of(graph, *BATCH_NORM):
        source = cast(fx.Node, norm.args[0])
        if source.target in COMPUTE - {aten.linear.default}:
            raise InputError(
                f"convolution '{source.name}' is read before its batch norm",
                fix="put the tap on the batch norm or on the activation after it",
            )
