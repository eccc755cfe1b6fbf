"""Cached answers are the teacher's own for that very augmentation, are asked for once, and survive a kill."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import (
    CachedTeacher,
    CrossEntropy,
    Interrupted,
    Milestone,
    SoftTarget,
    Stage,
    Term,
    Training,
    run_stage,
)
from edgekd.distill.batches import BatchStream, Share
from edgekd.distill.cache import fingerprint_of
from edgekd.distill.losses import make_loss
from edgekd.errors import InputError

VIEWS = Training(
    epochs=4, batch_size=100, learning_rate=0.1, device="cpu", mixed_precision="no", shift_px=2, views=2, view_seed=5
)


class Net(nn.Module):
    """A convolution and a classifier; counts how often it is asked."""

    def __init__(self, seed: int, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(294, classes)
        )
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.layers(x)


def cached(teacher: nn.Module, dataset: Dataset, folder: Path, **options: object) -> CachedTeacher:
    training = options.pop("training", VIEWS)
    return CachedTeacher(teacher, dataset, training, folder=folder, fingerprint="t", **options)  # type: ignore[arg-type]


def stage_of(dataset: Dataset, source: object, student: nn.Module, training: Training = VIEWS) -> Stage:
    terms = [Term(CrossEntropy()), Term(SoftTarget(), source="teacher")]
    return Stage("distil", dataset, {"student": student}, terms, {"teacher": source}, training)  # type: ignore[dict-item]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_images_views_are_the_same_in_every_run_batch_and_epoch(tiny_dataset: Dataset) -> None:
    seen: dict[tuple[int, int], Tensor] = {}
    for seed, batch_size in ((0, 100), (7, 50)):
        training = dataclasses.replace(VIEWS, seed=seed, batch_size=batch_size)
        with BatchStream(tiny_dataset, training, device=torch.device("cpu"), share=Share()) as stream:
            for step in range(stream.steps):
                batch = stream.at(step)
                assert batch.view is not None
                for image, index, view in zip(batch.images, batch.index.tolist(), batch.view.tolist(), strict=True):
                    assert torch.equal(seen.setdefault((index, view), image), image)
    assert len(seen) == 1200
    assert sum(not torch.equal(seen[i, 0], seen[i, 1]) for i in range(600)) > 500


def test_the_losses_see_the_teachers_logits_to_half_precision(tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = Net(1)
    source = cached(teacher, tiny_dataset, tmp_path)
    with BatchStream(tiny_dataset, VIEWS, device=torch.device("cpu"), share=Share()) as stream:
        source.bind(stream.at(0).images, [])
        for _ in range(2):
            batch = stream.at(3)
            torch.testing.assert_close(
                source.signals(batch).logits, teacher(batch.images).detach(), rtol=1e-3, atol=1e-3
            )
    assert source.asked == 100


def test_the_teacher_is_asked_once_for_each_image_and_view_and_never_in_a_second_run(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    teacher = Net(1)
    first = cached(teacher, tiny_dataset, tmp_path)
    run_stage(stage_of(tiny_dataset, first, one := Net(2)), out=tmp_path / "a")
    assert first.asked == 1200
    second = cached(teacher, tiny_dataset, tmp_path)
    run_stage(stage_of(tiny_dataset, second, other := Net(2)), out=tmp_path / "b")
    assert second.asked == 0
    assert same(one, other), "the first run already learned from what was stored"


def test_a_stopped_run_goes_on_bit_for_bit_with_its_cache(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run_stage(stage_of(tiny_dataset, cached(Net(1), tiny_dataset, tmp_path / "x"), whole := Net(2)), out=tmp_path / "a")
    stop = Milestone(8 / 24, lambda: os.kill(os.getpid(), signal.SIGINT))
    stage = stage_of(tiny_dataset, cached(Net(1), tiny_dataset, tmp_path / "y"), Net(2))
    with pytest.raises(Interrupted):
        run_stage(dataclasses.replace(stage, milestones=[stop]), out=tmp_path / "b")
    source = cached(Net(1), tiny_dataset, tmp_path / "y")
    run_stage(stage_of(tiny_dataset, source, resumed := Net(2)), out=tmp_path / "b", resume=True)
    assert same(whole, resumed)
    assert source.asked == 1200 - 900


def test_top_k_keeps_the_mass_of_the_rest(tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = Net(1)
    source = cached(teacher, tiny_dataset, tmp_path, top_k=3)
    with BatchStream(tiny_dataset, VIEWS, device=torch.device("cpu"), share=Share()) as stream:
        batch = stream.at(0)
        source.bind(batch.images, [])
        p, q = source.signals(batch).logits.exp(), teacher(batch.images).softmax(1).detach()
    torch.testing.assert_close(p.sum(1), torch.ones(100), rtol=2e-3, atol=2e-3)
    top = q.topk(3).indices
    torch.testing.assert_close(p.gather(1, top), q.gather(1, top), rtol=5e-3, atol=1e-4)
    rest = p.scatter(1, top, float("nan"))
    spread = rest.nan_to_num(-1).amax(1) - rest.nan_to_num(2).amin(1)
    assert float(spread.abs().max()) < 1e-6


def test_another_teacher_data_or_augmentation_has_a_folder_of_its_own(tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = Net(1)
    base = cached(teacher, tiny_dataset, tmp_path).folder
    changed = [
        CachedTeacher(teacher, tiny_dataset, VIEWS, folder=tmp_path, fingerprint="other").folder,
        cached(teacher, dataclasses.replace(tiny_dataset, fingerprint="other"), tmp_path).folder,
        cached(teacher, dataclasses.replace(tiny_dataset, horizontal_flip=True), tmp_path).folder,
        cached(teacher, tiny_dataset, tmp_path, top_k=3).folder,
        *[
            cached(teacher, tiny_dataset, tmp_path, training=dataclasses.replace(VIEWS, **change)).folder
            for change in ({"views": 3}, {"view_seed": 6}, {"shift_px": 1})
        ],
    ]
    assert len({base, *changed}) == 8
    other_run = dataclasses.replace(VIEWS, seed=9, batch_size=50, learning_rate=0.3)
    assert cached(teacher, tiny_dataset, tmp_path, training=other_run).folder == base


def test_a_fingerprint_tells_weights_apart() -> None:
    assert fingerprint_of(Net(1)) == fingerprint_of(Net(1)) != fingerprint_of(Net(2))
    with pytest.raises(InputError, match="Identity has no weights to tell it from others"):
        fingerprint_of(nn.Identity())


def test_a_cache_says_what_it_cannot_do(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a cache needs a known number of augmentations"):
        cached(Net(1), tiny_dataset, tmp_path, training=dataclasses.replace(VIEWS, views=None))
    with pytest.raises(InputError, match="mixed images never come back"):
        cached(Net(1), tiny_dataset, tmp_path, training=dataclasses.replace(VIEWS, mixup=0.2))
    with pytest.raises(InputError, match="cache: top_k 10 of 10 classes"):
        cached(Net(1), tiny_dataset, tmp_path, top_k=10)
    other = dataclasses.replace(VIEWS, shift_px=1)
    stage = stage_of(tiny_dataset, cached(Net(1), tiny_dataset, tmp_path), Net(2), other)
    with pytest.raises(InputError, match="cache: made for shift_px 2, the stage has 1"):
        run_stage(stage, out=tmp_path)
    hint = make_loss("hint", student_tap="layers.0", teacher_tap="layers.0")
    stage = stage_of(tiny_dataset, cached(Net(1), tiny_dataset, tmp_path), Net(2))
    with pytest.raises(InputError, match=r"a cached teacher has no tap 'layers\.0'"):
        run_stage(dataclasses.replace(stage, terms=[Term(hint, source="teacher")]), out=tmp_path)


def test_a_cache_that_is_not_what_its_name_says_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """A folder copied or edited by hand: its answers would be another teacher's."""
    source = cached(Net(1), tiny_dataset, tmp_path)
    run_stage(stage_of(tiny_dataset, source, Net(2), dataclasses.replace(VIEWS, epochs=0.5)), out=tmp_path / "run")
    about = source.folder / "about.json"
    about.write_text(about.read_text().replace('"teacher": "t"', '"teacher": "u"'))
    with pytest.raises(InputError, match="this cache is not what its name says; delete it"):
        run_stage(stage_of(tiny_dataset, cached(Net(1), tiny_dataset, tmp_path), Net(2)), out=tmp_path / "again")
