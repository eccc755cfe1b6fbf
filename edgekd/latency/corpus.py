"""Features of the networks that published rows name: traced once each, kept in a file.

A network is built without weights (its shapes are enough), so that a giant costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgekd.errors import InputError
from edgekd.files import write_whole
from edgekd.latency.features import NAMES, Vector, features
from edgekd.latency.networks import build_named
from edgekd.latency.published import Network, Row
from edgekd.latency.record import record_module
from edgekd.latency.trace import cost_of

Talk = Callable[[str], None]
_PARAMETERS_AGREE = 0.02
_SAVE_EVERY = 50


def known_features(rows: Iterable[Row], cache: Path | None, talk: Talk = lambda _: None) -> dict[Network, Vector]:
    """Features of every network of the rows that can be built and has the parameters that its rows state.

    cache: a .npz file that is read and added to; None keeps nothing. About half a second a network.
    Raises: InputError: the cache is damaged or of other features.
    """
    stated: dict[Network, float] = {}
    for row in rows:
        stated[row.network] = stated.get(row.network) or row.parameters
    found = _load(cache) if cache is not None and cache.is_file() else {}
    missing = sorted(set(stated) - set(found))
    for index, network in enumerate(missing):
        found[network] = _features(network, talk)
        if cache is not None and (index % _SAVE_EVERY == _SAVE_EVERY - 1 or index == len(missing) - 1):
            _save(found, cache)
            talk(f"traced {index + 1} of {len(missing)} networks")
    return {n: v[1:] for n, v in found.items() if n in stated and v[0] > 0 and _agree(float(v[0]), stated[n])}


def _agree(parameters: float, stated: float) -> bool:
    return not stated or abs(parameters / 1e6 / stated - 1) < _PARAMETERS_AGREE or stated < 0.5


def _features(network: Network, talk: Talk) -> Vector:
    """Parameters, then features; zeros for a network that cannot be built or run."""
    try:
        module = shapes_of(network)
        size = (1, 3, network.height, network.width)
        recording = record_module(module, size)
    except Exception as error:  # whatever a library's model raises: the row is left out, and said so
        talk(
            f"{network.name} at {network.height} px is left out ({type(error).__name__}: {str(error).splitlines()[:1]})"
        )
        return np.zeros(len(NAMES) + 1)
    return np.array([recording.parameters, *features(cost_of(recording))])


def shapes_of(network: Network) -> nn.Module:
    """The network with parameters that have shapes but no memory. Raises: InputError: no such network."""
    with torch.device("meta"):
        module = build_named(network.name, image_size=network.height)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for child in module.modules():
            for name, parameter in child._parameters.items():
                if parameter is not None and parameter.is_meta:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    child._parameters[name] = nn.Parameter(empty, requires_grad=False)
            for name, buffer in child._buffers.items():
                if buffer is not None and buffer.is_meta:
                    child._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        return _reparameterised(module) if network.reparameterised else module


def _reparameterised(module: nn.Module) -> nn.Module:
    import timm

    folded: nn.Module = timm.utils.reparameterize_model(module)
    return folded


def _load(cache: Path) -> dict[Network, Vector]:
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if tuple(stored["features"].tolist()) != NAMES:
                raise InputError("a cache of other features", where=cache, fix="delete it")
            keys, values = stored["networks"].tolist(), stored["values"]
            return {_parse(key): value for key, value in zip(keys, values, strict=True)}
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises anything: BadZipFile, zlib.error, NotImplementedError, ...
        raise InputError(f"not a cache of traced networks ({error})", where=cache, fix="delete it") from error


def _parse(key: str) -> Network:
    name, height, width, reparameterised = key.split("|")
    return Network(name, int(height), int(width), reparameterised == "1")


def _save(found: dict[Network, Vector], cache: Path) -> None:
    keys = np.array([f"{n.name}|{n.height}|{n.width}|{int(n.reparameterised)}" for n in found])

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, features=np.array(NAMES), networks=keys, values=np.array(list(found.values())))

    write_whole(cache, write)
