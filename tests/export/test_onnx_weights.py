"""int8 weights in ONNX: products get them with nearly the same numbers, a convolutional net is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.errors import EdgekdError
from edgekd.export import ExportRequest, export_one
from edgekd.quant import export_float, save_program
from edgekd.runtimes import logits, op_report, open_session

SHAPE = (3, 8, 8)


def program(net: nn.Module, folder: Path) -> Path:
    return save_program(export_float(net.eval(), SHAPE), folder / "float.pt2")


def request(path: Path, folder: Path) -> ExportRequest:
    return ExportRequest(target="onnxruntime", precision="w8", program=path, out=folder / "w8")


@pytest.mark.runtime
def test_matrix_products_get_int8_weights_and_keep_their_numbers(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.GELU(), nn.Linear(256, 10))
    path = program(net, tmp_path)
    artifact = export_one(request(path, tmp_path), log=tmp_path / "log")
    images = torch.randn(8, *SHAPE)
    found, expected = logits(open_session(artifact), images.numpy()), net(images).detach().numpy()
    assert 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()) > 30
    assert artifact.size_bytes < 0.4 * 4 * sum(p.numel() for p in net.parameters())
    assert op_report(artifact).int8_macs_share == 1.0


@pytest.mark.runtime
def test_a_convolutional_net_is_refused_with_its_share(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(EdgekdError, match=r"int8 weights for matrix products only, \d+% of this model's"):
        export_one(request(program(net, tmp_path), tmp_path), log=tmp_path / "log")
