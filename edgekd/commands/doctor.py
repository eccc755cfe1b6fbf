"""`edgekd doctor`: what is installed, what it is for, and what this machine can run."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.commands import console

_PACKAGES = {
    "core": ("torch", "torchvision", "timm", "torchao", "accelerate", "onnx", "onnxruntime", "onnxscript"),
    "tflite": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    "coreml": ("coremltools",),
    "openvino": ("openvino", "nncf"),
    "tensorrt": ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings"),
}


def doctor(json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Check the installation and this machine: packages by extra, CPU features, GPU, disk.

    Example: `edgekd doctor`
    """
    facts = {"packages": _packages(), "host": _host(), "targets": _targets()}
    if json:
        console.print_json(facts)
    else:
        _print(facts)
    if any(version is None for version in facts["packages"]["core"].values()):
        raise typer.Exit(1)


def _packages() -> dict[str, dict[str, str | None]]:
    return {extra: {name: _version(name) for name in names} for extra, names in _PACKAGES.items()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host() -> dict[str, Any]:
    import torch

    from edgekd.device_benchmarks.host import cpu_model

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }


def _targets() -> dict[str, dict[str, str | None]]:
    from edgekd.targets import load_targets

    answers: dict[str, dict[str, str | None]] = {}
    for name, target in load_targets().items():
        missing = target.missing()
        runs = bool(target.runs_here_with) and all(_found(p) for p in target.runs_here_with)
        answers[name] = {
            "converts": "yes" if missing is None else f"no: {missing} is not installed",
            "runs here": "yes" if runs else "no",
        }
    return answers


def _found(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    out = console.data()
    for key, value in facts["host"].items():
        out.print(f"{key:>16}  {value if value is not None else 'none'}")
    table = Table("extra", "package", "version")
    for extra, names in facts["packages"].items():
        for name, version in names.items():
            table.add_row(
                extra,
                name,
                version or f"[red]missing[/]: pip install 'edgekd[{extra}]'".replace("edgekd[core]", "edgekd"),
            )
    out.print(table)
    table = Table("target", "converts", "runs here")
    for name, answer in facts["targets"].items():
        table.add_row(name, answer["converts"], answer["runs here"])
    out.print(table)
