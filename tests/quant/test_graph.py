from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import InputError
from edgekd.quant import export_float
from edgekd.quant.graph import aten, nodes_of


def operators(program: torch.export.ExportedProgram) -> set[object]:
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def test_export_folds_batch_norms_and_keeps_the_numbers(make_net, images) -> None:
    net = make_net()
    program = export_float(net, (3, 16, 16))
    assert aten.batch_norm.default not in operators(program)
    assert not any("running" in name or "num_batches" in name for name in program.state_dict)
    for image in images[:4]:
        torch.testing.assert_close(program.module()(image[None]), net(image[None]), rtol=1e-4, atol=1e-5)


def test_export_leaves_the_model_as_it_was(make_net, images) -> None:
    net = make_net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    export_float(net, (1, 3, 16, 16))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_export_drops_taps_dropout_and_in_place_operators(make_net) -> None:
    program = export_float(make_net(("features", "convolved")), (3, 16, 16))
    assert len(program.graph_signature.user_outputs) == 1
    assert not operators(program) & {aten.dropout.default, aten.hardtanh_.default, aten.clone.default}


def test_an_in_place_operator_whose_input_is_read_later_keeps_its_meaning() -> None:
    class ReadsTheChanged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            z = y.relu_()
            return (y + z).flatten(1)

    program = export_float(ReadsTheChanged(), (1, 2, 2))
    assert torch.equal(program.module()(torch.full((1, 1, 2, 2), -1.0)), torch.zeros(1, 4))


def test_same_padding_is_written_as_numbers() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding="same", dilation=2), nn.BatchNorm2d(3), nn.Flatten()).eval()
    program = export_float(net, (2, 6, 6))
    (convolution,) = nodes_of(program.graph_module, aten.conv2d.default)
    assert list(convolution.args[4]) == [2, 2]
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (0, 16, 16), (2, 3, 16, 16)])
def test_a_shape_that_is_no_single_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="image shape"):
        export_float(nn.Flatten(), shape)


def test_a_model_that_cannot_be_traced_is_refused_in_one_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(InputError, match=r"^torch\.export cannot trace the model"):
        export_float(Branches(), (1, 2, 2))


def test_a_batch_norm_whose_convolution_is_also_a_residual_is_not_folded() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
            self.norm.running_mean.fill_(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (x + torch.relu(self.norm(x))).flatten(1)

    net, x = PreActivation().eval(), torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(export_float(net, (2, 4, 4)).module()(x), net(x), rtol=1e-4, atol=1e-5)
