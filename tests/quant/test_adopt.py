"""Any torch.export program with one image input is a model; several outputs keep their names from model to file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgekd.errors import InputError
from edgekd.quant import (
    adopt_program,
    adopted_shape,
    export_float,
    load_program,
    output_names,
    output_shapes,
    save_program,
)
from edgekd.quant.graph import aten, nodes_of

SHAPE = (3, 16, 16)


class Net(nn.Module):
    """Batch norm of real statistics, dropout, linear head; `picture` is its own name for the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4, 5)

    def forward(self, picture: Tensor) -> Tensor:
        return self.head(self.up(self.body(picture)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net().train()
    with torch.no_grad():
        for _ in range(8):
            made(torch.randn(8, *SHAPE))
    return made.eval()


def exported(net: nn.Module, kind: str) -> ExportedProgram:
    image = torch.randn(1, *SHAPE)
    if kind == "plain":
        return torch.export.export(net, (image,))
    if kind == "decomposed":
        return torch.export.export(net, (image,)).run_decompositions()
    batch = {0: Dim("batch", min=1)}
    return torch.export.export(net.train(), (image.repeat(2, 1, 1, 1),), dynamic_shapes=(batch,))


@pytest.mark.parametrize("kind", ["plain", "decomposed", "in training, with a free batch"])
def test_a_users_program_becomes_the_same_model_with_its_batch_norms_folded(net, tmp_path: Path, kind) -> None:
    image = torch.randn(1, *SHAPE)
    wanted = net(image)
    path = tmp_path / "users.pt2"
    torch.export.save(exported(net, kind), path)
    program = export_float(adopt_program(path), adopted_shape(path))
    assert torch.allclose(program.module()(image), wanted, atol=1e-6)
    assert not nodes_of(program.graph_module, aten.batch_norm.default, aten.dropout.default)
    kinds = (aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default)
    assert [len(nodes_of(program.graph_module, kind)) for kind in kinds] == [1, 1, 1]
    assert (program.graph_signature.user_inputs, output_names(program)) == (("image",), ("logits",))


class Two(nn.Module):
    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return image.mean((2, 3)) + other.mean((2, 3))


class Mean(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float().mean((1, 2))


def program_of(module: nn.Module, *inputs: Tensor, **more: Any) -> ExportedProgram:
    return torch.export.export(module, inputs, **more)


BAD = {
    r"has 2 inputs \(image, other\); it must take one image": lambda: program_of(
        Two(), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    ),
    r"input 'image' has free sizes .*; export it on one float32 image": lambda: program_of(
        Mean(), torch.zeros(1, 3, 8, 8), dynamic_shapes=({2: Dim("height", min=4, max=64)},)
    ),
    r"input 'image' is torch\.int64 \[1, 20, 4\], not an image": lambda: program_of(
        Mean(), torch.zeros(1, 20, 4, dtype=torch.int64)
    ),
    r"input 'image' is torch\.uint8 \[1, 3, 8, 8\], not an image": lambda: program_of(
        Mean(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    ),
    r"input 'image' has 224 channels, not an image's 1 to 4; .*NCHW": lambda: program_of(
        Mean(), torch.zeros(1, 224, 224, 3)
    ),
    r"fixed to batches of 4": lambda: program_of(Mean(), torch.zeros(4, 3, 8, 8)),
}


@pytest.mark.parametrize("message", list(BAD))
def test_a_program_that_takes_no_single_image_is_refused_with_what_it_takes(message) -> None:
    with pytest.raises(InputError, match=message):
        adopt_program(BAD[message]())


def test_a_file_that_is_no_program_names_itself(tmp_path: Path) -> None:
    (tmp_path / "weights.pt2").write_text("hello")
    with pytest.raises(InputError, match=r"weights\.pt2: not a torch\.export program"):
        adopt_program(tmp_path / "weights.pt2")


class Many(nn.Module):
    """As torchvision's dictionaries, with what makes names hard: a repeat, a stored tensor, the input, odd keys."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("anchors", torch.rand(1, 5, 4))

    def forward(self, x: Tensor) -> dict[str, Any]:
        out = self.conv(x)
        scores = {"scores": out.mean((2, 3)), "none": None}
        return OrderedDict(out=out, aux=scores, again=out, anchors=self.anchors, image=x, **{"a-b": out + 1})


def test_several_outputs_keep_the_names_and_order_of_the_models_own(tmp_path: Path) -> None:
    model, image = Many().eval(), torch.randn(1, 3, 8, 8)
    path = save_program(export_float(model, (3, 8, 8), outputs="all"), tmp_path / "many.pt2")
    program = load_program(path)
    assert output_names(program) == ("out", "aux_scores", "again", "anchors", "output_image", "a_b")
    assert output_shapes(program)[:2] == ((1, 4, 6, 6), (1, 4))
    result, wanted = program.module()(image), model(image)
    for found, expected in zip(result, (wanted["out"], wanted["aux"]["scores"], wanted["out"]), strict=False):
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(result[4], image)


def test_a_tuples_outputs_are_numbered_and_the_first_alone_is_the_logits() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((2, 3)), x * 2

    assert output_names(export_float(Pair(), (3, 8, 8), outputs="all")) == ("output_0", "output_1")
    first = export_float(Pair(), (3, 8, 8))
    assert (output_names(first), output_shapes(first)) == (("logits",), ((1, 3),))


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> dict[str, str]:
            return {"label": "cat"}

    with pytest.raises(InputError, match="returns no tensor"):
        export_float(Nothing(), (3, 8, 8), outputs="all")


def test_an_edgekd_program_with_a_free_size_is_refused(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean((2, 3))

    free = program_of(Named(), torch.zeros(2, 3, 8, 8), dynamic_shapes=({0: Dim("batch", min=1)},))
    torch.export.save(free, tmp_path / "free.pt2")
    with pytest.raises(InputError, match=r"free\.pt2: a program with free sizes .*; export it with a fixed image size"):
        load_program(tmp_path / "free.pt2")
