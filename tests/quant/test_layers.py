from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import InputError
from edgekd.quant import convert, export_float, int8_coverage, layer_names, load_program, prepare_qat, ptq, save_program
from edgekd.quant.nodes import aten, nodes_of
from edgekd.targets.spec import QuantSpec

NAMES = [
    "stem.0",
    "features.expand.0",
    "features.depthwise.0",
    "features.project.0",
    "head",
]


def spec(*float_layers: str) -> QuantSpec:
    return QuantSpec(scheme="affine", float_layers=float_layers)


def rounded(program: torch.export.ExportedProgram) -> dict[str, bool]:
    """Per layer whether its input and weight are int8, by the order of NAMES."""
    nodes = nodes_of(program.graph_module, aten.conv2d.default, aten.linear.default)
    flags = [all("dequantize" in str(argument.target) for argument in node.args[:2]) for node in nodes]
    return dict(zip(NAMES, flags, strict=True))


def test_layers_are_named_as_the_model_names_them(make_net) -> None:
    assert layer_names(make_net()) == layer_names(make_net(), (3, 16, 16)) == NAMES


def test_names_outlive_export_quantisation_and_the_disk(make_net, images, tmp_path) -> None:
    for program in (export_float(make_net(), (3, 16, 16)), ptq(make_net(), [images], spec())):
        assert layer_names(program) == NAMES
        loaded = load_program(save_program(program, tmp_path / "p.pt2"))
        assert layer_names(loaded) == NAMES


def test_a_program_traced_again_is_named_after_its_weights(make_net) -> None:
    graph = export_float(make_net(), (3, 16, 16)).module(check_guards=False)
    assert layer_names(graph, (3, 16, 16)) == NAMES


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_named_layer_stays_float_in_ptq_and_qat(make_net, images, trained, wrapped) -> None:
    net = make_net(("features",) if wrapped else ())
    chosen = spec("stem.0", "features.depthwise")
    program = convert(prepare_qat(net, images, chosen)) if trained else ptq(net, [images], chosen)
    assert [name for name, is_int8 in rounded(program).items() if not is_int8] == ["stem.0", "features.depthwise.0"]
    assert int8_coverage(program) == (3, 5)
    assert not nodes_of(program.graph_module, aten.batch_norm.default)


def test_a_float_layer_and_its_activation_are_not_rounded_in_between(make_net, images) -> None:
    program = ptq(make_net(), [images], spec("features"))
    (relu, *_) = nodes_of(program.graph_module, aten.hardtanh.default)[1:]
    (source,) = relu.all_input_nodes
    assert source.target is aten.conv2d.default
    assert {user.target for user in relu.users} == {aten.conv2d.default}


def test_a_model_with_every_layer_float_computes_in_float(make_net, images) -> None:
    net = make_net()
    program = ptq(net, [images], spec("stem", "features", "head"), quantise_output=False)
    assert int8_coverage(program) == (0, 5)


@pytest.mark.parametrize("trained", [False, True])
def test_an_unknown_layer_is_refused_and_the_nearest_named(make_net, images, trained) -> None:
    wrong = spec("features.expnd")
    quantise = (
        (lambda: prepare_qat(make_net(), images, wrong)) if trained else (lambda: ptq(make_net(), [images], wrong))
    )
    with pytest.raises(InputError, match=r"float_layers: no layer 'features\.expnd'.*'features\.expand"):
        quantise()


class Twice(nn.Module):
    """One convolution with two uses, and a batch norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.shared(x)))
        x = torch.relu(self.second(self.shared(x)))
        return self.head(x.mean((2, 3)))


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    with torch.no_grad():
        for _ in range(50):
            net.train()(images * 2 + 1)
    return net.eval()


def test_shared_weights_are_quantised_right_in_both_places(images) -> None:
    torch.manual_seed(0)
    net = settled(Twice(), images)
    exact = export_float(net, (3, 16, 16)).module()
    program = ptq(net, [images], spec())
    module = program.module()
    for image in images[:4]:
        expected = net(image[None])
        torch.testing.assert_close(exact(image[None]), expected, rtol=1e-4, atol=1e-5)
        assert (module(image[None]) - expected).abs().max() < 0.1 * expected.abs().max()
    quantised, total = int8_coverage(program)
    assert quantised == total
    assert layer_names(program)[0] == "shared"


def test_a_net_without_batch_norms_is_quantised(images) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.Flatten(), nn.Linear(576, 5))
    program = ptq(net.eval(), [images], spec())
    assert int8_coverage(program) == (3, 3)
    expected = net(images)
    got = torch.cat([program.module()(image[None]) for image in images])
    assert (got - expected).square().sum() < 0.01 * expected.square().sum()
