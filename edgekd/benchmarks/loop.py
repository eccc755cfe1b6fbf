"""What edgekd's loop costs over a hand-written one, and what its cache and its memory banks cost.

Bars: a step at most 1.03 times the hand-written one, at most 0.10 ms more where the networks compute nothing (what
other distillation toolkits add is 0.08 to 0.09 ms); cached logits at most 0.55 times the live teacher; CRD with 16,384
negatives of 50,000 images at most 3.9 times plain soft targets; peak memory within 5%.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.benchmarks.hand_written import HandWritten
from edgekd.benchmarks.interleaved import interleaved
from edgekd.benchmarks.memory import peaks
from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.data.preprocessing import Preprocessing
from edgekd.distill import CrossEntropy, SoftTarget, Stage, Term, Training
from edgekd.distill.cache import CachedTeacher, fingerprint_of
from edgekd.distill.losses import make_loss
from edgekd.distill.running import opened
from edgekd.distill.sources import Source
from edgekd.teachers.architectures import build

BATCH = 64
BARS = {
    "step": ("x", 1.03),
    "added": ("ms", 0.10),
    "cache": ("x", 0.55),
    "crd": ("x", 3.9),
    "memory": ("x", 1.05),
}
Way = Callable[[int], None]


@dataclass(frozen=True)
class Sizes:
    """How long to measure. images: of the data on which CRD keeps its banks."""

    rounds: int = 30
    images: int = 50_000
    negatives: int = 16_384
    student: str = "edgekd:resnet20"
    teacher: str = "edgekd:resnet56"
    tiny_steps: int = 20
    tiny_rounds: int = 10  # times the others': a step is short, and so is a moment without noise


class Nothing(nn.Module):
    """A network that computes next to nothing: a vector times a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, 4, 4) -> (batch, 10)."""
        return images.flatten(1)[:, :10] * self.scale


def random_data(images: int, size: int) -> Dataset:
    """Noise of ten classes: what is timed does not depend on what is seen."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> TensorSplit:
        pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        return TensorSplit(pixels, torch.arange(count) % 10)

    parts = (split(images), split(64), split(64))
    names = tuple(str(i) for i in range(10))
    input_of = Preprocessing(size, 3, (0.5,) * 3, (0.25,) * 3)
    return Dataset("noise", names, *parts, input_of, fingerprint=f"noise {images} {size}", horizontal_flip=size > 4)


def measure(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """All of the bench as plain JSON types: for each bar its value, and the times behind it."""
    return {
        "device": str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        **{name: getattr(sizes, name) for name in ("student", "teacher", "negatives", "images")},
        **{key: value for part in (_step, _added, _cache, _crd) for key, value in part(device, sizes).items()},
        "memory": peaks(device, sizes.student, sizes.teacher),
    }


def _step(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    data = random_data(8192, 32)
    with kd_loop(data, sizes.student, sizes.teacher, device, shift_px=4) as ours:
        return {"step": _against_hand(ours, data, _both(sizes), device, rounds=sizes.rounds, steps=1, shift_px=4)}


def _added(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    data = random_data(65_536, 4)
    with kd_loop(data, None, None, device) as ours:
        steps = sizes.tiny_steps
        rounds = sizes.rounds * sizes.tiny_rounds
        return {"added": _against_hand(ours, data, Nothing, device, rounds=rounds, steps=steps, shift_px=0)}


def _both(sizes: Sizes) -> Callable[[], nn.Module]:
    names = iter((sizes.student, sizes.teacher) * 2)
    return lambda: new_net(next(names))


def _against_hand(
    ours: Way,
    data: Dataset,
    new: Callable[[], nn.Module],
    device: torch.device,
    *,
    rounds: int,
    steps: int,
    shift_px: int,
) -> dict[str, Any]:
    """edgekd's loop, the hand-written one, and that one again (the A/A control)."""
    hand = HandWritten(data, new(), new(), BATCH, shift_px, device)
    again = HandWritten(data, new(), new(), BATCH, shift_px, device)
    times = interleaved({"hand": hand.go, "edgekd": ours, "again": again.go}, steps=steps, rounds=rounds)
    least = times["hand"].least
    return {
        "ratio": times["edgekd"].least / least,
        "added_ms": times["edgekd"].least - least,
        "control_ratio": times["again"].least / least,
        "control_added_ms": times["again"].least - least,
        "steps_per_round": steps,
        "times": {name: value.to_dict() for name, value in times.items()},
    }


def _cache(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Once around fills the cache; what is timed reads it."""
    data = random_data(8 * BATCH, 32)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        live = stack.enter_context(kd_loop(data, sizes.student, sizes.teacher, device, shift_px=4, views=1))
        cached = kd_loop(data, sizes.student, sizes.teacher, device, shift_px=4, views=1, cache=Path(folder))
        read = stack.enter_context(cached)
        read(8)
        return {"cache": _two("live", live, "cached", read, sizes.rounds)}


def _crd(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    data = random_data(sizes.images, 32)
    loss = make_loss("crd_memory", student_tap="linear@in", teacher_tap="linear@in", negatives=sizes.negatives)
    with ExitStack() as stack:
        plain = stack.enter_context(kd_loop(data, sizes.student, sizes.teacher, device, shift_px=4))
        term = Term(loss, 0.8, source="teacher")
        crd = stack.enter_context(kd_loop(data, sizes.student, sizes.teacher, device, shift_px=4, term=term))
        return {"crd": _two("kd", plain, "crd", crd, sizes.rounds)}


def _two(first: str, one: Way, second: str, other: Way, rounds: int) -> dict[str, Any]:
    times = interleaved({first: one, second: other}, steps=1, rounds=rounds)
    return {
        "ratio": times[second].least / times[first].least,
        "steps_per_round": 1,
        "times": {name: value.to_dict() for name, value in times.items()},
    }


def new_net(name: str) -> nn.Module:
    """An untrained network for 32 px images of ten classes."""
    torch.manual_seed(0)
    return build(name, num_classes=10, in_channels=3, image_size=32)


@contextmanager
def kd_loop(
    data: Dataset,
    student: str | None,
    teacher: str | None,
    device: torch.device,
    *,
    shift_px: int = 0,
    views: int | None = None,
    cache: Path | None = None,
    term: Term | None = None,
) -> Iterator[Way]:
    """edgekd's loop on soft targets (or on `term` beside labels), as something that does so many steps."""
    learner = Nothing() if student is None else new_net(student)
    expert: nn.Module = Nothing() if teacher is None else new_net(teacher)
    training = Training(
        epochs=10_000,
        batch_size=BATCH,
        learning_rate=0.05,
        shift_px=shift_px,
        views=views,
        device="cuda" if device.type == "cuda" else "cpu",
        mixed_precision="no",
        checkpoint_every_s=1e9,
    )
    source: nn.Module | Source = expert
    if cache is not None:
        source = CachedTeacher(expert, data, training, folder=cache, fingerprint=fingerprint_of(expert))
    terms = [Term(CrossEntropy(), 0.1), Term(SoftTarget(temperature=4.0), 0.9, source="teacher")]
    terms = terms if term is None else [Term(CrossEntropy()), term]
    stage = Stage("bench", data, {"student": learner}, terms, {"teacher": source}, training)
    with TemporaryDirectory() as folder, opened(stage, out=Path(folder)) as run:
        yield lambda steps: run.go(lambda _progress: None, steps=steps)
