from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.quant import export_float, int8_coverage, layer_names, ptq, reparameterised
from edgekd.targets.spec import QuantSpec

timm = pytest.importorskip("timm")


def settled(net: nn.Module) -> nn.Module:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            net.train()(x)
    return net.eval()


@pytest.fixture(scope="module")
def repvit() -> nn.Module:
    torch.manual_seed(0)
    model = timm.models.repvit.RepVit(num_classes=5, embed_dim=(8, 16), depth=(1, 1), distillation=False)
    return settled(model)


@pytest.fixture(scope="module")
def mobileone() -> nn.Module:
    torch.manual_seed(0)
    return settled(timm.create_model("mobileone_s0", num_classes=5))


@pytest.mark.parametrize("name", ["repvit", "mobileone"])
def test_branches_are_merged_and_the_numbers_stay(name: str, request) -> None:
    model = request.getfixturevalue(name)
    x = torch.randn(2, 3, 32, 32)
    merged = reparameterised(model)
    assert len(list(merged.parameters())) < 0.7 * len(list(model.parameters()))
    with torch.no_grad():
        error = (merged(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 1e-3


def test_the_model_itself_keeps_its_branches(repvit) -> None:
    before = [name for name, _ in repvit.named_modules()]
    reparameterised(repvit)
    assert [name for name, _ in repvit.named_modules()] == before


def test_a_model_without_branches_is_returned_as_it_is(make_net) -> None:
    net = make_net()
    assert reparameterised(net) is net


def test_export_and_quantisation_merge_branches_by_themselves(repvit) -> None:
    program = export_float(repvit, (3, 32, 32))
    assert len(layer_names(program)) == len(layer_names(reparameterised(repvit), (3, 32, 32)))
    x = torch.randn(4, 3, 32, 32)
    quantised, total = int8_coverage(ptq(repvit, [x], QuantSpec(scheme="affine")))
    assert quantised == total == len(layer_names(program))
