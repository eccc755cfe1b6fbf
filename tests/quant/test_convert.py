from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import qat_utils

from edgekd.errors import InputError
from edgekd.quant import convert, export_float, int8_coverage, prepare_qat, ptq, unfold_weights
from edgekd.quant.fast_patterns import fast_patterns
from edgekd.quant.graph import aten, nodes_of
from edgekd.targets.spec import QuantSpec
from edgekd.teachers.wide_resnet import WideResNet

decomposed = torch.ops.quantized_decomposed


def run(program: torch.export.ExportedProgram, images: Tensor) -> Tensor:
    module = program.module()
    with torch.no_grad():
        return torch.cat([module(image[None]) for image in images])


def snr_db(reference: Tensor, other: Tensor) -> float:
    reference, other = reference.detach(), other.detach()
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum().clamp(min=1e-30)))


def int8_tensors(program: torch.export.ExportedProgram) -> list[Tensor]:
    stored = {**program.state_dict, **program.constants}
    return [t for t in stored.values() if isinstance(t, Tensor) and t.dtype == torch.int8]


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_conversion_agrees_with_the_qat_model_in_eval_mode(fresh, images, scheme) -> None:
    model = fresh(scheme).eval()
    program = convert(model)
    assert snr_db(model(images)[0], run(program, images)) > 24
    assert int8_coverage(program) == (5, 5)
    assert not nodes_of(program.graph_module, aten.batch_norm.default, aten.dropout.default)


def test_conversion_leaves_the_qat_model_as_it_was(fresh, images) -> None:
    model = fresh()
    before, code = copy.deepcopy(model.state_dict()), model.graph.code
    convert(model)
    assert model.training
    assert model.graph.code == code
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_are_stored_as_int8_and_minus_128_is_never_used(fresh) -> None:
    weights = int8_tensors(convert(fresh()))
    assert len(weights) == 5
    assert all(weight.min() >= -127 for weight in weights)
    assert any(weight.abs().max() == 127 for weight in weights)


def test_seven_bit_weights_stay_within_63(make_net, images) -> None:
    spec = QuantSpec(scheme="affine", weight_bits=7)
    for program in (convert(prepare_qat(make_net(), images, spec)), ptq(make_net(), [images], spec)):
        assert max(int(weight.abs().max()) for weight in int8_tensors(program)) == 63


def test_symmetric_activations_have_zero_point_zero_and_affine_ones_use_it(fresh) -> None:
    points = {}
    for scheme in ("affine", "symmetric"):
        nodes = nodes_of(convert(fresh(scheme)).graph_module, decomposed.quantize_per_tensor.default)
        points[scheme] = {node.args[2] for node in nodes}
    assert points["symmetric"] == {0}
    assert points["affine"] - {0}


def test_the_input_and_the_logits_are_quantised(fresh) -> None:
    graph = convert(fresh()).graph_module.graph
    image = next(node for node in graph.nodes if node.op == "placeholder" and node.name == "image")
    assert {user.target for user in image.users} == {decomposed.quantize_per_tensor.default}
    (logits,) = graph.output_node().all_input_nodes
    assert logits.target is decomposed.dequantize_per_tensor.default


def test_logits_stay_float_where_asked(make_net, images) -> None:
    program = ptq(make_net(), [images], QuantSpec(scheme="affine"), quantise_output=False)
    (logits,) = program.graph_module.graph.output_node().all_input_nodes
    assert logits.target is aten.linear.default
    assert int8_coverage(program) == (5, 5)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_ptq_stays_close_to_the_float_model(make_net, images, scheme) -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    program = ptq(net, iter([images[:8], images[8:]]), QuantSpec(scheme=scheme))
    assert snr_db(net(images), run(program, images)) > 20
    assert int8_coverage(program) == (5, 5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_ptq_needs_calibration_images(make_net) -> None:
    with pytest.raises(InputError, match="no calibration images"):
        ptq(make_net(), [], QuantSpec(scheme="affine"))


def test_ptq_drops_the_taps(make_net, images) -> None:
    program = ptq(make_net(("features",)), [images], QuantSpec(scheme="affine"))
    assert program.graph_signature.user_outputs == ("logits",)


def test_unfolded_weights_are_float_and_give_the_same_logits(fresh, images) -> None:
    program = convert(fresh())
    module = unfold_weights(program)
    quantised = nodes_of(module, decomposed.quantize_per_channel.default)
    assert len(quantised) == 5
    assert torch.equal(torch.cat([module(image[None]) for image in images[:4]]), run(program, images[:4]))
    assert int8_coverage(program) == (5, 5)


def test_a_float_program_has_no_int8_coverage(make_net) -> None:
    assert int8_coverage(export_float(make_net(), (3, 16, 16))) == (0, 5)


@pytest.mark.parametrize("trained", [False, True])
def test_batch_norms_without_a_convolution_become_exact_int8_depthwise_convolutions(images, trained) -> None:
    torch.manual_seed(0)
    net = WideResNet(10, 1).train()
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(-1, 1)  # a negative gain has to survive too
        for _ in range(20):
            net(images)
    spec = QuantSpec(scheme="affine")
    program = convert(prepare_qat(net, images, spec)) if trained else ptq(net, [images], spec)
    quantised, total = int8_coverage(program)
    assert quantised == total == 9 + 1 + 4  # convolutions; the linear layer; norms that read a sum or a shared tensor
    assert not nodes_of(program.graph_module, aten.batch_norm.default)
    assert snr_db(net.eval()(images), run(program, images)) > 15


class Mixed(nn.Module):
    """Concatenation, gating, hard-swish, pooling, channel shuffle, 'same' padding, a bias before the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.Hardswish(inplace=True))
        self.right = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.last = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        x = nn.functional.channel_shuffle(x * self.gate(x), 2)
        x = nn.functional.max_pool2d(x, 2)
        return self.head(torch.flatten(self.last(x), 1))


@pytest.mark.parametrize("trained", [False, True])
def test_the_operators_of_usual_networks_are_int8(images, trained) -> None:
    torch.manual_seed(0)
    net, spec = Mixed().train(), QuantSpec(scheme="affine")
    with torch.no_grad():
        for _ in range(50):
            net(images)
    program = convert(prepare_qat(net, images, spec)) if trained else ptq(net, [images], spec)
    assert int8_coverage(program) == (5, 5)
    assert snr_db(net.eval()(images), run(program, images)) > 18


def test_torchao_is_restored_after_a_conversion_even_a_failed_one(fresh) -> None:
    before = (qat_utils._fold_conv_bn_qat_helper, qat_utils._fuse_conv_bn_qat_helper, qat_utils.itertools)
    graph = fresh().graph
    with pytest.raises(ZeroDivisionError), fast_patterns(graph):
        raise ZeroDivisionError
    assert before == (qat_utils._fold_conv_bn_qat_helper, qat_utils._fuse_conv_bn_qat_helper, qat_utils.itertools)


@pytest.mark.slow
def test_the_short_list_of_patterns_gives_what_torchaos_own_gives(fresh, images, monkeypatch) -> None:
    model = fresh()
    short = run(convert(model), images)
    monkeypatch.setattr("edgekd.quant.conversion.fast_patterns", lambda graph: contextlib.nullcontext())
    assert torch.equal(run(convert(model), images), short)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("mobilenet_v2", 53), ("resnet18", 21)])
def test_torchvision_networks_prepare_and_convert_whole(name: str, layers: int) -> None:
    import torchvision

    torch.manual_seed(0)
    net, x = getattr(torchvision.models, name)(num_classes=10).train(), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        for _ in range(10):
            net(x)
    model = prepare_qat(net, x, QuantSpec(scheme="affine"))
    model(x).square().mean().backward()
    program = convert(model)
    assert int8_coverage(program) == (layers, layers)
    assert snr_db(model.eval()(x), run(program, x)) > 20


def test_conversion_keeps_each_batch_norms_own_eps(images) -> None:
    """torchao folds with 1e-5 whatever it is; with small variances the program would be another network."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    net[1].running_var.fill_(1e-4)
    net[0].weight.data.mul_(0.01)
    model = prepare_qat(net.eval(), images, QuantSpec(scheme="affine")).eval()
    assert snr_db(model(images), run(convert(model), images)) > 30
