"""Train a classifier on a data set, from scratch or from weights, with edgekd's own loop; save it as a teacher.

What this is: a short way from a folder of images to a `.safetensors` that `edgekd distill --teacher` takes by itself,
and from weights that were trained on other images to a teacher that knows these. What it is not: a way to a good
teacher from scratch; bring your own well-trained weights where you have them.

Run: python scripts/train_teacher.py --model timm:resnet18 --data ./images --epochs 10 --out t.safetensors
     python scripts/train_teacher.py --model edgekd:resnet56 --weights resnet56-4bfd9763.th --lr 0.01 --epochs 2 \
         --label-smoothing 0 --data cifar10-jpegq75.npz --out resnet56-cifar10.safetensors
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from edgekd.data import load_data
from edgekd.distill import CrossEntropy, Progress, Stage, Term, Training, evaluate, run_stage
from edgekd.teachers import save_teacher
from edgekd.teachers.architectures import build
from edgekd.teachers.checkpoint import fit, read_state


def tell(progress: Progress) -> None:
    record = progress.epoch_record
    if record is not None:
        print(
            f"epoch {record.epoch}: held-out top-1 {record.val_accuracy:.2%}, {record.images_per_s:.0f} images/s",
            flush=True,
        )


def train(args: argparse.Namespace) -> None:
    dataset = load_data(args.data, image_size=args.image_size)
    pre = dataset.preprocessing
    torch.manual_seed(args.seed)
    model = build(
        args.model, num_classes=dataset.num_classes, in_channels=pre.channels, image_size=pre.image_size
    ).train()
    if args.weights is not None:
        fit(model, read_state(args.weights), num_classes=dataset.num_classes, where=args.weights)
    training = Training(epochs=args.epochs, learning_rate=args.lr, shift_px=args.shift_px, seed=args.seed)
    terms = [Term(CrossEntropy(label_smoothing=args.label_smoothing))]
    with tempfile.TemporaryDirectory() as folder:
        run_stage(
            Stage("teacher", dataset, {"student": model}, terms, {}, training), out=Path(folder), on_progress=tell
        )
    found = evaluate(model, dataset.test, pre)
    facts = {
        "architecture": args.model,
        "num_classes": dataset.num_classes,
        "in_channels": pre.channels,
        "image_size": pre.image_size,
        "mean": list(pre.mean),
        "std": list(pre.std),
        "data": dataset.name,
        "recipe": f"SGD one-cycle lr {args.lr}, {args.epochs:g} epochs, label smoothing {args.label_smoothing:g}"
        + (f", from {args.weights.name}" if args.weights else ""),
        "seed": args.seed,
        "test_top1": found.top1,
        "test_n": found.n,
    }
    save_teacher(model, args.out, facts)
    print(f"test top-1 {found.top1:.2%} of {found.n}; wrote {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="timm:, torchvision: or edgekd:NAME")
    parser.add_argument("--weights", type=Path, help="a checkpoint to start from")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--shift-px", type=int, default=2)
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
