"""A small training run in a process of its own, for tests that kill it or start several.

The model has no batch norm with --plain, since batch statistics differ between one process and several by nature.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.data.preprocessing import Preprocessing
from edgekd.distill import (
    Collaboration,
    CrossEntropy,
    Discriminator,
    Hint,
    MeanTeacher,
    Pass,
    Pool,
    Progress,
    SoftTarget,
    Stage,
    TemporalEnsemble,
    Term,
    Training,
    run_stage,
)
from edgekd.distill.losses import LOSSES, make_loss


class Net(nn.Module):
    """Conv, (batch norm), ReLU, conv, (dropout), linear."""

    def __init__(self, width: int, *, plain: bool) -> None:
        super().__init__()
        norm = nn.Identity() if plain else nn.BatchNorm2d(width)
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), norm, nn.ReLU(), nn.Conv2d(width, width, 3))
        self.dropout = nn.Dropout(0.0 if plain else 0.2)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of 4 classes."""
        return self.fc(self.dropout(self.features(x).relu().mean((2, 3))))


def split(n: int, seed: int) -> TensorSplit:
    """Random images whose brightness tells the class."""
    labels = torch.arange(n) % 4
    noise = torch.randint(0, 60, (n, 1, 12, 12), generator=torch.Generator().manual_seed(seed))
    return TensorSplit((noise + 50 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


BALANCED = {
    "student_tap": "features.0",
    "terms": [
        {"method": "soft_target_kl"},
        {"method": "hint", "student_tap": "features.-1", "teacher_tap": "features"},
    ],
}


def with_players(stage: Stage, second: nn.Module, peer: nn.Module) -> Stage:
    """The stage with everything that has a state of its own, mixed images and accumulated gradients."""
    judge = Discriminator(hidden=8)
    sources = {
        **stage.sources,
        "pool": Pool({"first": stage.sources["teacher"], "second": second}, weighting="labels"),
        "average": MeanTeacher(stage.students["student"], decay=0.95),
        "past": TemporalEnsemble(stage.dataset),
        "together": Collaboration({"student": stage.students["student"], "peer": peer}),
    }
    terms = [Term(SoftTarget(), source=name, name=name) for name in ("pool", "average", "past")]
    terms += [
        Term(SoftTarget(), source="together", student=name, name=f"{name} <- all") for name in ("student", "peer")
    ]
    terms.append(Term(CrossEntropy(), student="peer", name="peer"))
    terms.append(Term(make_loss("gradient_balanced", **BALANCED), 0.1, source="teacher"))
    terms.append(Term(Pass(judge, student_tap="features", teacher_tap="features"), 0.1, source="teacher"))
    training = dataclasses.replace(stage.training, ema_decay=0.9, mixup=0.2, cutmix=1.0, accumulate=2)
    changes = {"sources": sources, "players": {"judge": judge}, "training": training}
    students = {**stage.students, "peer": peer}
    return dataclasses.replace(stage, students=students, terms=[*stage.terms, *terms], **changes)


def further(method: str) -> Term:
    """A term that neither vanishes nor rules the others, on the last feature where the method reads one."""
    loss = LOSSES[method]
    taps = {"student_tap": "features.-1", "teacher_tap": "features"}
    options = {name: tap for name, tap in taps.items() if name in inspect.signature(loss).parameters}
    return Term(make_loss(method, **options), source="teacher", weight=max(0.01, 0.001 * loss.published_weight))


def main() -> None:
    """Train, print one line per step, write the weights and the history."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--method", action="append", default=[], help="a further loss")
    parser.add_argument("--players", action="store_true", help="sources and players that remember; averaged weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, student = Net(12, plain=arguments.plain), Net(6, plain=arguments.plain)
    preprocessing = Preprocessing(12, 1, (0.5,), (0.25,))
    dataset = Dataset("made", tuple("abcd"), split(90, 1), split(20, 2), split(20, 3), preprocessing, "made", "", True)
    terms = [
        Term(CrossEntropy()),
        Term(SoftTarget(), source="teacher", weight=lambda progress: 0.0 if progress < 0.2 else 1.0),
        Term(Hint("features.-1", "features"), source="teacher"),
    ]
    terms += [further(method) for method in arguments.method]
    training = Training(
        epochs=24,
        batch_size=20,
        learning_rate=0.05,
        shift_px=2,
        mixed_precision="no",
        device="cpu",
        checkpoint_every_s=0,
    )
    stage = Stage("distil", dataset, {"student": student}, terms, {"teacher": teacher}, training)
    if arguments.players:
        stage = with_players(stage, Net(8, plain=arguments.plain), Net(6, plain=arguments.plain))

    def tell(progress: Progress) -> None:
        print(progress.step, flush=True)

    result = run_stage(stage, out=arguments.out, resume=arguments.resume, on_progress=tell)
    if os.environ.get("RANK", "0") == "0":
        torch.save(student.state_dict(), arguments.out / "final.pt")
        history = [record.losses for record in result.history]
        (arguments.out / "history.json").write_text(json.dumps({"history": history, "processes": result.processes}))


if __name__ == "__main__":
    main()
