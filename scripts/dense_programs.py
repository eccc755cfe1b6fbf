"""A segmentation and a detection net as `.pt2` programs, for the export matrix: dense outputs, resize, concatenation.

Run: python scripts/dense_programs.py --data cifar10-jpegq75.npz --backbone zoo/mobilenet_v3_large.safetensors --out zoo

Both stand on the backbone that `scripts/train_zoo.py` trained. LR-ASPP learns for some steps to give every pixel its
image's class. SSDLite's head keeps its initial weights (there are no boxes to learn from) under batch norms with real
statistics; anchors and suppression, which no runtime compiles, stay outside, as in any deployed SSD.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from train_zoo import IMAGENET, batch_of, settle_statistics

from edgekd.data import Dataset, Preprocessing, load_data

STEPS = 200


class Segmenter(nn.Module):
    """LR-ASPP: (1, 3, H, W) to (1, classes, H, W)."""

    def __init__(self, classes: int, backbone: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)
        take(self.net.backbone, backbone, "features.")

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.net(image)["out"]
        return out


class Detector(nn.Module):
    """SSDLite without its anchors: (1, 3, H, W) to class logits (1, anchors, classes) and boxes (1, anchors, 4)."""

    def __init__(self, classes: int, backbone: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes + 1)
        whole = mobilenet_v3_large(num_classes=classes)
        whole.load_state_dict(backbone)
        pairs = zip(self.net.backbone.features.state_dict().values(), whole.features.state_dict().values(), strict=True)
        for mine, theirs in pairs:  # the same modules in the same order; the tail's are half as wide and stay random
            if mine.shape == theirs.shape:
                mine.copy_(theirs)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = list(self.net.backbone(image).values())
        found: dict[str, Tensor] = self.net.head(features)
        return {"logits": found["cls_logits"], "boxes": found["bbox_regression"]}


def take(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    """Load a backbone by name."""
    module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})


def learn_pixels(model: nn.Module, dataset: Dataset, preprocessing: Preprocessing) -> None:
    """Every pixel has the class of its image."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(STEPS):
        images, labels = batch_of(dataset, preprocessing, generator)
        logits = model(images)
        loss = functional.cross_entropy(logits, labels[:, None, None].expand(-1, *logits.shape[2:]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            print(f"lraspp step {step + 1} loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Make and save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", type=Path, required=True, help="weights of torchvision's mobilenet_v3_large")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    dataset = load_data(options.data, image_size=options.image_size)
    preprocessing = Preprocessing(image_size=options.image_size, channels=3, **IMAGENET)
    backbone = load_file(options.backbone)
    nets = {
        "lraspp_mobilenet_v3_large": Segmenter(dataset.num_classes, backbone),
        "ssdlite_mobilenet_v3_large": Detector(dataset.num_classes, backbone),
    }
    learn_pixels(nets["lraspp_mobilenet_v3_large"], dataset, preprocessing)
    for name, net in nets.items():
        settle_statistics(net.train(), dataset, preprocessing)
        example = torch.randn(1, 3, options.image_size, options.image_size)
        torch.export.save(torch.export.export(net.eval(), (example,)), options.out / f"{name}.pt2")
        print(f"{name}.pt2", flush=True)


if __name__ == "__main__":
    main()
