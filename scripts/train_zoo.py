"""Train the nets of the export matrix a few minutes each on CIFAR-10 (JPEG) at 64 px: real weights, modest accuracy.

Run: python scripts/train_zoo.py --data cifar10-jpegq75.npz --out zoo torchvision:mobilenet_v2=2000 timm:repvit_m0_9=900

NAME=STEPS each; AdamW, 50 steps of warm-up and a cosine, flips and shifts; dense nets in bf16 (depthwise convolutions
are slower in it on CPUs). A file already in OUT is trained on: run it again for better nets. The files name their
architecture, so that `edgekd export zoo/FILE.safetensors --data ...` takes them by themselves.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data import Dataset, Preprocessing, load_data
from edgekd.teachers import save_teacher
from edgekd.teachers.architectures import build

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Nets with layer norms or attention learn at half the rate of the others.
SLOW = ("vit", "deit", "convnext", "former", "fastvit")
DENSE = ("resnet", "deit")
BATCH, WARM_UP_STEPS, STATISTICS_BATCHES = 32, 50, 160


def batch_of(dataset: Dataset, preprocessing: Preprocessing, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random training images, mirrored or not and shifted by up to 3 px, all alike; their labels."""
    index = torch.randint(len(dataset.train), (BATCH,), generator=generator)
    images = dataset.train.images(index)
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    down, right = torch.randint(-3, 4, (2,), generator=generator).tolist()
    images = torch.roll(images, (down, right), (2, 3))
    return preprocessing.normalise(images).contiguous(memory_format=torch.channels_last), dataset.train.labels[index]


def near_identity(model: nn.Module) -> None:
    """Small scales for MobileOne's branches beside the identity: forty layers without skips explode the gradients."""
    for block in model.modules():
        if getattr(block, "identity", None) is not None and hasattr(block, "conv_kxk"):
            for branch in (block.conv_kxk, block.conv_scale):
                for module in branch.modules() if branch is not None else ():
                    if isinstance(module, nn.BatchNorm2d):
                        nn.init.constant_(module.weight, 0.1)


def train(name: str, steps: int, dataset: Dataset, preprocessing: Preprocessing, begun: Path) -> nn.Module:
    """A net after `steps` steps, in eval mode; the weights of `begun` to start from, where there are some."""
    torch.manual_seed(0)
    model = build(name, num_classes=dataset.num_classes, in_channels=3, image_size=preprocessing.image_size)
    if begun.exists():
        model.load_state_dict(load_file(begun))
    elif "mobileone" in name:
        near_identity(model)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    rate = 5e-4 if any(part in name for part in SLOW) else 1e-3
    dense = any(part in name for part in DENSE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, labels = batch_of(dataset, preprocessing, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=dense):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"{name} step {step + 1} loss {loss.item():.3f}", flush=True)
    settle_statistics(model, dataset, preprocessing)
    return model.eval()


@torch.no_grad()
def settle_statistics(model: nn.Module, dataset: Dataset, preprocessing: Preprocessing) -> None:
    """Batch norm statistics as plain means over 160 batches: some nets follow them too slowly for a short training."""
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for _ in range(STATISTICS_BATCHES if norms else 0):
        model(batch_of(dataset, preprocessing, generator)[0])


@torch.no_grad()
def top1(model: nn.Module, dataset: Dataset, preprocessing: Preprocessing) -> float:
    """Test accuracy."""
    right = 0
    for index in torch.arange(len(dataset.test)).split(500):
        logits = model(preprocessing.normalise(dataset.test.images(index)))
        right += int((logits.argmax(1) == dataset.test.labels[index]).sum())
    return right / len(dataset.test)


def main() -> None:
    """Train and save each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", metavar="LIBRARY:NAME=STEPS")
    parser.add_argument("--data", required=True)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    dataset = load_data(options.data, image_size=options.image_size)
    preprocessing = Preprocessing(image_size=options.image_size, channels=3, **IMAGENET)
    for net in options.nets:
        name, _, steps = net.rpartition("=")
        path = options.out / f"{name.partition(':')[2]}.safetensors"
        model = train(name, int(steps), dataset, preprocessing, path)
        accuracy = top1(model, dataset, preprocessing)
        save(model, path, name, dataset, preprocessing, accuracy)
        print(f"{name}: test top-1 {accuracy:.2%}", flush=True)


def save(
    model: nn.Module, path: Path, name: str, dataset: Dataset, preprocessing: Preprocessing, accuracy: float
) -> None:
    """A file that `edgekd export` and `--teacher` read by themselves."""
    facts = {
        "architecture": name,
        "num_classes": dataset.num_classes,
        "in_channels": 3,
        "data": dataset.name,
        "test_top1": accuracy,
        **preprocessing.to_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_teacher(model, path, facts=facts)


if __name__ == "__main__":
    main()
