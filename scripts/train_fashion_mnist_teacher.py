"""Train the teacher that edgekd ships: WRN-16-2 on Fashion-MNIST.

What this is: the exact recipe behind `edgekd/teachers/assets/fashion-mnist-wrn16-2.safetensors`.
What it is not: a general trainer; `edgekd` distils, it does not sweep recipes.

Run: python scripts/train_fashion_mnist_teacher.py --data /usr/share/datasets/fashion-mnist --out teacher.safetensors

The last epoch is kept: nothing is selected on the test set, which is read once, at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekd.teachers.checkpoint import save_teacher
from edgekd.teachers.wide_resnet import WideResNet

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images in [0, 1]


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def load(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(read_idx(folder / f"{prefix}-images-idx3-ubyte.gz").copy()).unsqueeze(1)
    labels = torch.from_numpy(read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64))
    return images, labels


def normalise(images: Tensor) -> Tensor:
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Horizontal flip (p = 0.5) and a shift of up to 2 px, one shift per batch."""
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(3), images)
    dy, dx = (int(v) for v in torch.randint(0, 5, (2,), generator=generator))
    return functional.pad(images, (2, 2, 2, 2))[:, :, dy : dy + 28, dx : dx + 28]


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = 0
    for i in range(0, len(images), 500):
        hits += int((model(normalise(images[i : i + 500])).argmax(1) == labels[i : i + 500]).sum())
    return hits / len(images)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = load(args.data, "train")
    model = WideResNet(16, 2, num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}],
        0.1,
        momentum=0.9,
        nesterov=True,
    )
    steps = args.epochs * (len(images) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.2)
    started = time.time()
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for i in range(len(images) // args.batch_size):
            index = order[i * args.batch_size : (i + 1) * args.batch_size]
            x = normalise(augment(images[index], generator))
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(x)
            loss = functional.cross_entropy(logits.float(), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if i % 50 == 0:
                print(f"epoch {epoch} step {i} loss {loss.item():.3f} {time.time() - started:.0f}s", flush=True)
        if args.keep:
            torch.save(model.state_dict(), args.keep)
    test_images, test_labels = load(args.data, "t10k")
    top1 = accuracy(model, test_images, test_labels)
    facts = {
        "architecture": "edgekd:wrn16-2",
        "num_classes": 10,
        "in_channels": 1,
        "image_size": 28,
        "mean": [MEAN],
        "std": [STD],
        "data": "fashion-mnist",
        "recipe": f"SGD nesterov 0.9, one-cycle lr {args.lr}, weight decay 5e-4 (matrices), {args.epochs} epochs, "
        f"batch {args.batch_size}, flip + shift 2 px, label smoothing 0.05, bf16 autocast {args.bf16}",
        "seed": args.seed,
        "test_top1": top1,
        "test_n": len(test_images),
    }
    save_teacher(model, args.out, facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--keep", type=Path, help="write the weights after every epoch here, to survive an interruption"
    )
    train(parser.parse_args())
