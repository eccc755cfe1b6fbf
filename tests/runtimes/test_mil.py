"""A Core ML package, read back from disk and interpreted, gives what torch gives."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import InputError
from edgekd.export import ExportRequest, export_one
from edgekd.quant import export_float, save_program
from edgekd.runtimes import logits, open_session
from edgekd.runtimes.coreml import load_mil
from edgekd.runtimes.mil import MilProgram

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac Core ML itself runs the package"),
]


class ManyOps(nn.Module):
    """One branch per kind of operator that mobile networks emit, joined at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.norm = nn.LayerNorm(8)
        self.lone_norm = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8 * 9, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardswish(self.stem(image))
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        attended = F.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        left, right = x.chunk(2, dim=1)
        branches = [
            F.silu(self.dilated(x)),
            F.gelu(self.lone_norm(x)),
            self.prelu(F.max_pool2d(x, 3, 1, 1) - 0.1),
            F.avg_pool2d(F.pad(x, (1, 0, 0, 1)), 2, 1) * torch.sigmoid(x) + torch.tanh(x),
            torch.cat([F.softplus(right), F.elu(left)], 1),
            torch.stack([left, right], 1).transpose(1, 2).reshape(x.shape),
            x * F.hardsigmoid(F.relu6(x.mean((2, 3), keepdim=True))),
            torch.softmax(x, 1) / (1 + x.square().sum(1, keepdim=True).sqrt()),
        ]
        pooled = [branch.amax((2, 3)) for branch in branches[:4]] + [branch.mean((2, 3)) for branch in branches[4:]]
        return self.head(torch.cat([*pooled, attended.mean(1)], 1))


def trained_looking(net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Batch norms with the statistics of real activations instead of zeros and ones."""
    net.train()
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(8, *shape))
    return net.eval()


def coreml_of(net: nn.Module, shape: tuple[int, int, int], folder: Path, precision: str = "fp32") -> Artifact:
    program = save_program(export_float(net, shape), folder / "float.pt2")
    request = ExportRequest(target="coreml", precision=precision, program=program, out=folder / precision)
    return export_one(request, log=folder / "log")


def snr_db(net: nn.Module, artifact: Artifact, shape: tuple[int, int, int]) -> float:
    images = torch.randn(4, *shape)
    with torch.no_grad():
        expected = net(images).numpy()
    noise = float(((expected - logits(open_session(artifact), images.numpy())) ** 2).sum())
    return 10 * float(np.log10((expected**2).sum() / max(noise, 1e-30)))


def test_a_net_of_many_operators_survives_conversion_and_interpretation(tmp_path):
    torch.manual_seed(0)
    net = trained_looking(ManyOps(), (3, 16, 16))
    artifact = coreml_of(net, (3, 16, 16), tmp_path)
    kinds = {op.op_type for op in load_mil(artifact.path).operations}
    assert {"conv", "layer_norm", "gelu", "softmax", "concat", "max_pool", "avg_pool", "pad", "matmul"} <= kinds
    assert snr_db(net, artifact, (3, 16, 16)) > 100


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bar_db"), [("fp32", 100), ("fp16", 45)])
def test_mobilenet_v3_small_gives_torchs_logits(tmp_path, precision, bar_db):
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    net = trained_looking(mobilenet_v3_small(num_classes=10), (3, 64, 64))
    assert snr_db(net, coreml_of(net, (3, 64, 64), tmp_path, precision), (3, 64, 64)) > bar_db


class _Op:
    """As much of coremltools' operation as the interpreter reads."""

    def __init__(self, op_type: str) -> None:
        self.op_type, self.name, self.inputs, self.outputs = op_type, "x1", {}, ()


class _Function:
    def __init__(self, *kinds: str) -> None:
        self.inputs, self.outputs, self.operations = {"image": None}, (), [_Op(kind) for kind in kinds]


def test_operators_that_are_not_interpreted_are_all_named(tmp_path):
    with pytest.raises(InputError, match=r"the MIL interpreter does not know gru, lstm; its numerics can only be"):
        MilProgram(_Function("lstm", "const", "relu", "gru"), where=tmp_path / "m.mlpackage")


def test_a_package_whose_weights_are_cut_short_is_refused(exported, tmp_path):
    import shutil

    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(exported("coreml", "fp32").path, broken)
    weights = next(broken.rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:64])
    image = TensorSpec(name="image", shape=(1, 1, 28, 28), dtype="float32", layout="NCHW")
    out = TensorSpec(name="logits", shape=(1, 10), dtype="float32", layout="NC")
    artifact = Artifact(
        target="coreml", precision="fp32", path=broken, inputs=(image,), outputs=(out,), size_bytes=1, sha256=""
    )
    with pytest.raises(InputError, match=r"broken\.mlpackage: cannot reload its MIL program"):
        open_session(artifact)


class Shuffled(nn.Module):
    """Two branches whose channels are shuffled together: coremltools writes it as one interleaved `concat`."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 3)

    def forward(self, image: Tensor) -> Tensor:
        both = torch.cat([self.left(image), self.right(image)], 1)
        batch, channels, height, width = both.shape
        mixed = both.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(both.shape)
        return (mixed * torch.arange(channels).reshape(-1, 1, 1)).mean((2, 3))


def test_a_channel_shuffle_keeps_its_order(tmp_path):
    torch.manual_seed(0)
    net = Shuffled().eval()
    assert snr_db(net, coreml_of(net, (3, 8, 8), tmp_path), (3, 8, 8)) > 100


@pytest.mark.parametrize(("form", "kind"), [("linear", "constexpr_affine"), ("palette", "constexpr_lut_to_dense")])
def test_weights_that_coremltools_compressed_are_read_back(tmp_path, form, kind):
    from edgekd.runtimes.coreml import quiet_coremltools

    torch.manual_seed(0)
    net = Shuffled().eval()
    artifact = coreml_of(net, (3, 8, 8), tmp_path)
    with quiet_coremltools() as tools:
        import coremltools.optimize.coreml as optimise

        model = tools.models.MLModel(str(artifact.path), skip_model_load=True)
        small = optimise.OptimizationConfig(
            optimise.OpLinearQuantizerConfig(weight_threshold=16)
            if form == "linear"
            else optimise.OpPalettizerConfig(mode="uniform", nbits=8, weight_threshold=16)
        )
        shrink = optimise.linear_quantize_weights if form == "linear" else optimise.palettize_weights
        shrink(model, small).save(str(tmp_path / "small.mlpackage"))
    compressed = artifact.model_copy(update={"path": tmp_path / "small.mlpackage"})
    assert any(op.op_type.startswith(kind) for op in load_mil(compressed.path).operations)
    assert 30 < snr_db(net, compressed, (3, 8, 8)) < 100


def test_fp16_values_overflow_as_they_would_on_the_device(tmp_path):
    class Loud(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return (image * 300.0 * 300.0).mean((2, 3)) / 9e4

    loud = coreml_of(Loud(), (3, 4, 4), tmp_path, "fp16")
    assert not np.isfinite(logits(open_session(loud), np.ones((1, 3, 4, 4), np.float32))).all()
