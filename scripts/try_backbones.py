"""Whether backbones convert and compute what their programs do: the table of docs/export.md "Other backbones".

Run: python scripts/try_backbones.py --data cifar10-jpegq75.npz timm:mobilevitv2_050 timm:levit_128s@224

NAME[@PX] each, untrained, batch norms settled on 48 training images: this is about operators and rounding, not about
accuracy. fp32 is held against the float program and int8 against the int8 one, on 8 images. A line per net as it is
done, reasons behind them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data import Preprocessing, load_data
from edgekd.errors import EdgekdError
from edgekd.export import ExportOutcome, ExportRequest, export_all
from edgekd.quant import export_float, load_program, ptq, save_program
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for
from edgekd.teachers.architectures import build

TARGETS = ("tflite", "onnxruntime", "openvino", "coreml")
CLASSES, CALIBRATION_IMAGES, CHECKED_IMAGES, BATCH = 10, 48, 8, 24
SAME_DB = 200.0


def main() -> None:
    """One row per net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", metavar="LIBRARY:NAME[@PX]")
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| net | px | int8 program against float | " + " | ".join(f"{t} fp32, int8" for t in TARGETS) + " |")
    print("|---" * (3 + len(TARGETS)) + "|", flush=True)
    reasons: list[str] = []
    for net in options.nets:
        name, _, side = net.partition("@")
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, int(side or 64), options.data, Path(folder), reasons), flush=True)
    print("", *reasons, sep="\n")


def row(name: str, side: int, data: str, folder: Path, reasons: list[str]) -> str:
    """The line of a net; why something is missing in it goes to `reasons`."""
    images = images_of(data, side)
    try:
        programs, kept = programs_of(settled(name, side, images), images, folder)
    except EdgekdError as error:
        reasons.append(f"- {name}: {error}")
        return f"| {name} | {side} | - |" + " - |" * len(TARGETS)
    requests = [
        ExportRequest(target=target, precision=precision, program=programs[precision], out=folder / target / precision)
        for target in TARGETS
        for precision in ("fp32", "int8")
    ]
    found = {(o.target, o.precision): o for o in export_all(requests, folder / "logs")}
    cells = [
        ", ".join(cell(found[target, precision], programs[precision], images, reasons) for precision in programs)
        for target in TARGETS
    ]
    return f"| {name} | {side} | {kept:.1f} | {' | '.join(cells)} |"


def images_of(data: str, side: int) -> Tensor:
    """Normalised training images."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocessing = Preprocessing(image_size=side, channels=3, mean=mean, std=std)
    return preprocessing.normalise(load_data(data, image_size=side).train.images(torch.arange(CALIBRATION_IMAGES)))


@torch.no_grad()
def settled(name: str, side: int, images: Tensor) -> nn.Module:
    """The net with its initial weights and the images' own statistics in its batch norms."""
    torch.manual_seed(0)
    net = build(name, num_classes=CLASSES, in_channels=3, image_size=side).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for batch in images.split(BATCH):
        net(batch)
    return net.eval()


def programs_of(net: nn.Module, images: Tensor, folder: Path) -> tuple[dict[str, Path], float]:
    """A float and an int8 program, and what the one keeps of the other, dB."""
    made = {
        "fp32": export_float(net, images.shape[1:]),
        "int8": ptq(net, list(images.split(BATCH)), quant_spec_for("tflite")),
    }
    paths = {name: save_program(program, folder / f"{name}.pt2") for name, program in made.items()}
    return paths, snr_db(run(paths["fp32"], images), run(paths["int8"], images))


def cell(outcome: ExportOutcome, program: Path, images: Tensor, reasons: list[str]) -> str:
    """What an artifact keeps of its program in its runtime, dB."""
    if outcome.artifact is None:
        reasons.append(f"- {outcome.reason}")
        return "-"
    session = open_session(outcome.artifact, threads=1)
    found = logits(session, images[:CHECKED_IMAGES].numpy())
    session.close()
    kept = snr_db(run(program, images), found)
    return "same" if kept == SAME_DB else f"{kept:.0f}"


@torch.no_grad()
def run(program: Path, images: Tensor) -> np.ndarray:
    """Logits of a program for the images that are checked."""
    module = load_program(program).module(check_guards=False)
    return torch.cat([module(image[None]) for image in images[:CHECKED_IMAGES]]).numpy()


def snr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise ratio, dB; 200 where nothing differs."""
    noise = float(np.square(wanted - found).sum())
    return SAME_DB if noise == 0 else 10 * float(np.log10(np.square(wanted).sum() / noise))


if __name__ == "__main__":
    main()
