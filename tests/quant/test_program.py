from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.errors import InputError
from edgekd.quant import convert, export_float, image_shape, is_quantised, load_program, num_classes, save_program


def test_a_float_program_survives_the_disk(make_net, images, tmp_path: Path) -> None:
    program = export_float(make_net(), (3, 16, 16))
    again = load_program(save_program(program, tmp_path / "float.pt2"))
    assert torch.equal(again.module()(images[:1]), program.module()(images[:1]))
    assert (image_shape(again), num_classes(again), is_quantised(again)) == ((1, 3, 16, 16), 5, False)


def test_an_int8_program_survives_the_disk(fresh, images, tmp_path: Path) -> None:
    program = convert(fresh())
    again = load_program(save_program(program, tmp_path / "int8.pt2"))
    assert torch.equal(again.module()(images[:1]), program.module()(images[:1]))
    assert is_quantised(again)


def test_every_program_calls_its_input_image_and_its_output_logits(make_net, fresh) -> None:
    for program in (export_float(make_net(), (3, 16, 16)), convert(fresh())):
        assert program.graph_signature.user_inputs == ("image",)
        assert program.graph_signature.user_outputs == ("logits",)


def test_loading_what_is_not_a_program_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pt2: no such program"):
        load_program(tmp_path / "gone.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(InputError, match=r"text\.pt2: not a torch\.export program"):
        load_program(tmp_path / "text.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(InputError, match=r"other\.pt2: not a \.pt2 archive"):
        load_program(tmp_path / "other.pt2")


def test_a_truncated_program_is_refused(make_net, tmp_path: Path) -> None:
    path = save_program(export_float(make_net(), (3, 16, 16)), tmp_path / "float.pt2")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"float\.pt2: not "):
        load_program(path)


def test_a_program_of_another_project_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    save_program(program, tmp_path / "linear.pt2")
    with pytest.raises(InputError, match=r"a program with inputs \['input'\] and 1 outputs"):
        load_program(tmp_path / "linear.pt2")


def test_saving_under_another_suffix_is_refused(make_net, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.pt2"):
        save_program(export_float(make_net(), (3, 16, 16)), tmp_path / "float.onnx")
