"""The usual backbones, small inputs, random weights with settled batch norms: everything heavy becomes int8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekd.quant import convert, export_float, int8_coverage, int8_macs, output_names, prepare_qat, ptq
from edgekd.quant.nodes import aten, nodes_of
from edgekd.quant.qat import BN_EPS, BN_MOMENTUM
from edgekd.targets.spec import QuantSpec

pytestmark = pytest.mark.slow
SPEC = QuantSpec(scheme="affine", bias_correction=False)

# One of each kind of block; scripts/export_matrix.py goes through the others, trained and in their runtimes.
CLASSIFIERS = (
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x1_0",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
    "timm:repvit_m0_9",
    "timm:deit_tiny_patch16_224",
)


def built(name: str, **settings: object) -> nn.Module:
    library, _, architecture = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        models = pytest.importorskip("torchvision").models
        return getattr(models, architecture)(num_classes=10, **settings)
    return pytest.importorskip("timm").create_model(architecture, num_classes=10, **settings)


def images(size: int) -> Tensor:
    return torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))


def settled(net: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        for _ in range(5):
            net.train()(x)
    return net.eval()


def snr_db(expected: Tensor, got: Tensor) -> float:
    expected, got = expected.detach().double(), got.detach().double()
    return float(10 * torch.log10(expected.square().sum() / (got - expected).square().sum()))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_layer_of_a_backbone_becomes_int8_and_the_logits_stay_close(name: str) -> None:
    attention = "deit" in name
    x = images(32 if attention else 64)
    net = settled(built(name, **({"img_size": 32, "depth": 3} if attention else {})), x)
    program = ptq(net, [x], SPEC)
    quantised, total = int8_coverage(program)
    assert quantised == total
    done, everything = int8_macs(program)
    assert done == everything
    module, exact = program.module(check_guards=False), export_float(net, x.shape[1:]).module(check_guards=False)
    with torch.no_grad():
        expected = net(x[:4])
        assert snr_db(expected, torch.cat([exact(image[None]) for image in x[:4]])) > 80
        assert snr_db(expected, torch.cat([module(image[None]) for image in x[:4]])) > 10


def float_islands(program: torch.export.ExportedProgram) -> set[str]:
    """Operators that read a float value which was not dequantised for them, fused clamps aside."""
    found = set()
    for node in program.graph.nodes:
        readers = node.op == "call_function" and "quantize" not in str(node.target)
        if readers and any(s.op == "call_function" and "dequantize" not in str(s.target) for s in node.all_input_nodes):
            found.add(str(node.target).split(".")[1])
    return found - {"relu", "hardtanh"}


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("torchvision:mobilenet_v3_small", set()),
        ("torchvision:shufflenet_v2_x1_0", set()),
        ("timm:efficientnet_b0", set()),
        ("timm:convnext_atto", {"permute", "flatten"}),  # beside its layer norms, which stay float
    ],
)
def test_gates_splits_and_shuffles_pass_int8_through(name: str, allowed: set[str]) -> None:
    x = images(32)
    assert float_islands(ptq(settled(built(name), x), [x], SPEC)) <= allowed


class Detector(nn.Module):
    """ssdlite's backbone and head: two outputs from six feature maps."""

    def __init__(self) -> None:
        super().__init__()
        detection = pytest.importorskip("torchvision").models.detection
        model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
        self.backbone, self.head = model.backbone, model.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(x).values()))


def segmenter(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision").models.segmentation
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=4, aux_loss="deeplab" in name or None)


@pytest.mark.parametrize(
    ("make", "names", "size"),
    [
        (lambda: segmenter("lraspp_mobilenet_v3_large"), ("logits",), 64),
        (lambda: segmenter("deeplabv3_mobilenet_v3_large"), ("out", "aux"), 64),
        (Detector, ("bbox_regression", "cls_logits"), 128),
    ],
)
def test_dense_heads_keep_their_outputs_and_become_int8(
    make: Callable[[], nn.Module], names: tuple[str, ...], size: int
) -> None:
    x = images(size)
    net = settled(make(), x)
    program = ptq(net, [x], SPEC, outputs="all")
    assert output_names(program) == names
    done, everything = int8_macs(program)
    assert done == everything
    with torch.no_grad():
        expected = list(net(x[:1]).values())
        got = program.module(check_guards=False)(x[:1])
    for wanted, found in zip(expected, got if isinstance(got, tuple) else (got,), strict=True):
        assert snr_db(wanted, found) > 15


@pytest.mark.parametrize(
    ("name", "settings", "float_layer", "literals"),
    [
        ("torchvision:mobilenet_v3_small", {}, "features.4.block.0", {(0.01, 0.001)}),
        ("timm:efficientnet_b0", {"drop_rate": 0.2}, "blocks.1", {(0.1, 1e-5)}),
        ("timm:convnext_atto", {"depths": (1, 1, 1, 1), "ls_init_value": 0.1}, "stages.2", set()),
        ("timm:deit_tiny_patch16_224", {"img_size": 32, "depth": 2, "drop_rate": 0.1}, "blocks.0.mlp", set()),
    ],
)
def test_real_nets_train_quantised_and_convert(name, settings, float_layer, literals) -> None:
    x = images(32)
    net = settled(built(name, **settings), x)
    qat = prepare_qat(net, x, SPEC.model_copy(update={"float_layers": (float_layer,)}))
    assert {n.args[BN_MOMENTUM : BN_EPS + 1] for n in nodes_of(qat.graph, aten.batch_norm.default)} == literals
    drops = {n.args[1] for n in nodes_of(qat.graph, aten.dropout.default)} - {0.0}
    assert drops <= {settings.get("drop_rate", 0.2)}
    qat(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in qat.parameters())
    program = convert(qat)
    quantised, total = int8_coverage(program)
    assert 0 < quantised < total
    assert not nodes_of(program.graph_module, aten.batch_norm.default)
    assert snr_db(qat.eval()(x), torch.cat([program.module(check_guards=False)(i[None]) for i in x])) > 12
