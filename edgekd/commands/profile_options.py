"""Options of `edgekd profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, edgekd:NAME, a run directory, or a .tflite .onnx .xml .pt2 .mlpackage."
    ),
]
On = Annotated[
    str,
    typer.Option(
        "--on",
        help="local, ssh://user@host, adb:SERIAL, names of the devices file (commas), all, or apple-package.",
    ),
]
Against = Annotated[
    str | None, typer.Option("--against", help="What to compare with: as MODEL. Default for a run: its teacher.")
]
Runtimes = Annotated[
    str | None, typer.Option("--runtime", help="Of a run: only these, comma-separated: openvino,onnxruntime,tflite.")
]
Torch = Annotated[
    str, typer.Option("--torch", help="How PyTorch models run here: eager, compile (torch.compile), or both.")
]
Layers = Annotated[
    bool, typer.Option("--layers", help="Also each layer's time, and the share of each unit or delegate; local.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one inference.")]
ModeName = Annotated[str, typer.Option("--mode", help="quick (about 10 s each), standard (60 s), sustained (600 s).")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Fresh processes. Default: the mode's.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=8, help="Input side of a zoo model, px.")]
Weights = Annotated[Path | None, typer.Option("--weights", help="Checkpoint of a zoo model; without: random.")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="Data whose classes a zoo model is made for.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the interleaving and of the bootstrap.")]
DevicesFile = Annotated[
    Path | None, typer.Option("--devices", help="Devices file. Default: ~/.config/edgekd/devices.toml.")
]
Out = Annotated[Path | None, typer.Option("--out", help="With --on apple-package: where the Swift package goes.")]
ImportFile = Annotated[
    Path | None,
    typer.Option("--import", help="Show a result measured elsewhere: the package's log, or a --json document."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, every raw sample included.")]
