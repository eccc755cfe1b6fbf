"""Claims about teachers from names, weights and files that load alone."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgekd.data import Dataset, Preprocessing, load_data
from edgekd.data.fashion_mnist import DEBIAN_FOLDER
from edgekd.errors import InputError
from edgekd.files import sha256_of
from edgekd.teachers import Teacher, load_teacher, save_teacher
from edgekd.teachers.architectures import build
from edgekd.teachers.load import shipped_file

FACTS: dict[str, Any] = {
    "architecture": "edgekd:wrn10-1",
    "num_classes": 10,
    "in_channels": 1,
    "image_size": 28,
    "mean": [0.25],
    "std": [0.5],
    "test_top1": 0.5,
}
TIMM = "timm:resnet10t"


def _saved(path: Path, **change: Any) -> Path:
    torch.manual_seed(0)
    facts = {**FACTS, **change}
    model = build(facts["architecture"], num_classes=facts["num_classes"], in_channels=facts["in_channels"])
    return save_teacher(model, path, facts)


def _timm_state(*, num_classes: int = 10, in_channels: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(TIMM, num_classes=num_classes, in_channels=in_channels).state_dict()


def _logits(teacher: Teacher) -> torch.Tensor:
    p = teacher.preprocessing
    x = torch.randn(2, p.channels, p.image_size, p.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: torch.Tensor = teacher.module(x)
    return out


def test_a_saved_teacher_loads_alone_with_its_input_and_facts(tmp_path: Path, tiny_dataset: Dataset) -> None:
    path = _saved(tmp_path / "t.safetensors")
    teacher = load_teacher(str(path), dataset=tiny_dataset)
    assert teacher.preprocessing == Preprocessing(image_size=28, channels=1, mean=(0.25,), std=(0.5,))
    assert (teacher.num_classes, teacher.black_box, teacher.facts["test_top1"]) == (10, False, 0.5)
    assert teacher.fingerprint == sha256_of(path)
    assert not teacher.module.training
    assert not any(p.requires_grad for p in teacher.module.parameters())
    torch.manual_seed(0)
    model = build("edgekd:wrn10-1", num_classes=10, in_channels=1).eval()
    assert torch.equal(_logits(teacher), _logits(dataclasses.replace(teacher, module=model)))


def test_weights_without_a_spec_are_the_teacher(tmp_path: Path, tiny_dataset: Dataset) -> None:
    path = _saved(tmp_path / "t.safetensors")
    assert load_teacher(None, weights=path, dataset=tiny_dataset).name == "t.safetensors"


def test_the_shipped_teacher_is_the_default(tiny_dataset: Dataset) -> None:
    teacher = load_teacher(None, dataset=tiny_dataset)
    assert teacher.fingerprint == sha256_of(shipped_file("edgekd:fashion-mnist"))
    assert teacher.facts["architecture"] == "edgekd:wrn16-2"
    assert shipped_file("edgekd:fashion-mnist").stat().st_size <= 4_000_000


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_shipped_teacher_is_as_good_as_its_facts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_DATA", raising=False)
    data = load_data()
    teacher = load_teacher(None, dataset=data)
    adapted, hits = teacher.adapt(data.preprocessing), 0
    index = data.sample("test", 2000)
    with torch.no_grad():
        for chunk in index.split(250):
            logits = adapted(data.preprocessing.normalise(data.test.images(chunk)))
            hits += int((logits.argmax(1) == data.test.labels[chunk]).sum())
    assert hits / len(index) == pytest.approx(teacher.facts["test_top1"], abs=0.015)
    assert teacher.facts["test_top1"] >= 0.935


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"module." + k: v for k, v in s.items()}},
        lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s},
        lambda s: {"ema": {"n_averaged": torch.tensor(1), **{"module." + k: v for k, v in s.items()}}},
        lambda s: OrderedDict(("_orig_mod." + k, v) for k, v in s.items()),
    ],
    ids=["plain", "state_dict", "model of DDP", "averaged first", "averaged model", "compiled"],
)
def test_checkpoints_are_unwrapped(tmp_path: Path, tiny_dataset: Dataset, wrap: Any) -> None:
    state = _timm_state(in_channels=1)
    torch.save(wrap(state), tmp_path / "w.pt")
    teacher = load_teacher(TIMM, weights=tmp_path / "w.pt", dataset=tiny_dataset)
    assert all(torch.equal(v, state[k]) for k, v in teacher.module.state_dict().items())


def test_channels_come_from_the_stem_and_normalisation_from_the_data(tmp_path: Path, tiny_dataset: Dataset) -> None:
    save_file(_timm_state(in_channels=3), str(tmp_path / "w.safetensors"))
    teacher = load_teacher(TIMM, weights=tmp_path / "w.safetensors", dataset=tiny_dataset)
    own = tiny_dataset.preprocessing
    assert teacher.preprocessing == Preprocessing(image_size=28, channels=3, mean=own.mean * 3, std=own.std * 3)
    assert teacher.adapt(own)(own.normalise(tiny_dataset.test.images([0, 1]))).shape == (2, 10)


def test_half_precision_weights_become_float32(tmp_path: Path, tiny_dataset: Dataset) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in _timm_state(in_channels=1).items()}
    save_file(halves, str(tmp_path / "w.safetensors"))
    teacher = load_teacher(TIMM, weights=tmp_path / "w.safetensors", dataset=tiny_dataset)
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}


def test_torchvision_models_take_grey_images(tmp_path: Path, tiny_dataset: Dataset) -> None:
    model = build("torchvision:squeezenet1_1", num_classes=10, in_channels=1)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    data = dataclasses.replace(
        tiny_dataset, preprocessing=dataclasses.replace(tiny_dataset.preprocessing, image_size=64)
    )
    teacher = load_teacher("torchvision:squeezenet1_1", weights=tmp_path / "w.pth", dataset=data)
    assert (teacher.preprocessing.channels, _logits(teacher).shape) == (1, (2, 10))


def test_a_vit_keeps_the_size_it_is_made_for(tmp_path: Path, tiny_dataset: Dataset) -> None:
    name = "timm:vit_tiny_patch16_224"
    torch.save(build(name, num_classes=10, in_channels=3).state_dict(), tmp_path / "w.pt")
    teacher = load_teacher(name, weights=tmp_path / "w.pt", dataset=tiny_dataset)
    assert teacher.preprocessing.image_size == 224


def test_another_class_count_is_named_as_such(tmp_path: Path, tiny_dataset: Dataset) -> None:
    torch.save(_timm_state(num_classes=7), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: the teacher has 7 classes, the data have 10"):
        load_teacher(TIMM, weights=tmp_path / "w.pt", dataset=tiny_dataset)
    with pytest.raises(InputError, match="the teacher has 4 classes, the data have 10"):
        load_teacher(str(_saved(tmp_path / "t.safetensors", num_classes=4)), dataset=tiny_dataset)


def test_the_first_differing_key_is_named(tmp_path: Path, tiny_dataset: Dataset) -> None:
    def load(state: dict[str, torch.Tensor]) -> None:
        torch.save(state, tmp_path / "w.pt")
        load_teacher(TIMM, weights=tmp_path / "w.pt", dataset=tiny_dataset)

    state = _timm_state()
    with pytest.raises(InputError, match=r"missing key 'fc\.bias'"):
        load({k: v for k, v in state.items() if k != "fc.bias"})
    with pytest.raises(InputError, match=r"unexpected key 'extra\.weight' \(and 1 more\)"):
        load({**state, "extra.weight": torch.zeros(1), "extra.bias": torch.zeros(1)})
    with pytest.raises(InputError, match=r"'bn1\.weight' is \(9,\) in the file but \(\d+,\) in the model"):
        load({**state, "bn1.weight": torch.zeros(9)})
    with pytest.raises(InputError, match=r"'fc\.bias' holds NaN or infinity"):
        load({**state, "fc.bias": torch.full((10,), float("nan"))})


def test_a_pickled_model_is_refused_with_the_way_to_convert_it(tmp_path: Path, tiny_dataset: Dataset) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"it holds torch\.nn.*Linear.*only tensors.*safetensors\.torch\.save_file"):
        load_teacher(TIMM, weights=tmp_path / "w.pt", dataset=tiny_dataset)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, tiny_dataset: Dataset, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello, this is text")
    with pytest.raises(InputError, match=r"not a (checkpoint|safetensors file)"):
        load_teacher(TIMM, weights=tmp_path / name, dataset=tiny_dataset)


def test_a_cut_checkpoint_and_one_without_tensors_are_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    file = tmp_path / "w.pt"
    torch.save(_timm_state(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a checkpoint"):
        load_teacher(TIMM, weights=file, dataset=tiny_dataset)
    torch.save({"epoch": 3, "model": {"args": {}}}, file)
    with pytest.raises(InputError, match="holds no weights by name"):
        load_teacher(TIMM, weights=file, dataset=tiny_dataset)
    with pytest.raises(InputError, match=r"none\.pt: no such weights file"):
        load_teacher(TIMM, weights=tmp_path / "none.pt", dataset=tiny_dataset)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("timm:resnet_18", "unknown architecture 'timm:resnet_18'; did you mean .*'resnet18'"),
        ("torchvision:mobilenet_v2_small", "unknown architecture .*did you mean .*mobilenet_v"),
        ("timm:qqqqqqqq", "see timm's list of models"),
        ("timm:hf-hub:someone/model", "unknown architecture 'timm:hf-hub:someone/model'"),
        ("torchvision:fcn_resnet50", "unknown architecture"),
        ("edgekd:wrn17-2", "expected edgekd:wrnD-K with D = 6n"),
        ("edgekd:fashion", "unknown architecture 'edgekd:fashion'"),
        ("timm:", "unknown architecture 'timm:'"),
        ("resnet18", "resnet18: no such teacher; .*timm:NAME"),
        ("timm:resnet18", "teacher 'timm:resnet18' has no weights; pass --weights FILE"),
    ],
)
def test_names_that_cannot_be_used_are_answered_with_the_cure(tiny_dataset: Dataset, spec: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_teacher(spec, dataset=tiny_dataset)


def test_files_that_do_not_say_their_architecture_are_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    save_file(_timm_state(), str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match=r"name no architecture; pass --teacher timm:NAME --weights w\.safetensors"):
        load_teacher(str(tmp_path / "w.safetensors"), dataset=tiny_dataset)
    torch.save(_timm_state(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="weights alone do not say which architecture"):
        load_teacher(str(tmp_path / "w.pt"), dataset=tiny_dataset)
    (tmp_path / "w.h5").write_text("x")
    with pytest.raises(InputError, match="not a teacher that edgekd reads"):
        load_teacher(str(tmp_path / "w.h5"), dataset=tiny_dataset)
    with pytest.raises(InputError, match=r"no programs/float\.pt2"):
        load_teacher(str(tmp_path), dataset=tiny_dataset)


def test_bad_metadata_are_named(tmp_path: Path, tiny_dataset: Dataset) -> None:
    for text, match in (("{", "is not JSON"), ("[]", "not a JSON object"), ("{}", "lacks 'architecture'")):
        save_file({"w": torch.zeros(1)}, str(tmp_path / "w.safetensors"), metadata={"edgekd": text})
        with pytest.raises(InputError, match=match):
            load_teacher(str(tmp_path / "w.safetensors"), dataset=tiny_dataset)
    with pytest.raises(InputError, match="1 channels but 2 means"):
        _saved(tmp_path / "t.safetensors", mean=[0.1, 0.2])
    assert not (tmp_path / "t.safetensors").exists()


def test_weights_beside_a_teacher_that_brings_its_own_are_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    path = _saved(tmp_path / "t.safetensors")
    for spec in ("edgekd:fashion-mnist", str(path)):
        with pytest.raises(InputError, match="brings its own weights"):
            load_teacher(spec, weights=path, dataset=tiny_dataset)
