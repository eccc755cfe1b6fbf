"""Weights on disk: read without running code, fitted into a model, and written as a teacher that loads alone.

A teacher's .safetensors file carries one JSON document under the metadata key "edgekd": architecture, num_classes,
in_channels, image_size, mean, std, and whatever else is known (data, recipe, seed, test_top1).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import InputError
from edgekd.files import write_whole

METADATA_KEY = "edgekd"
_REQUIRED = ("architecture", "num_classes", "in_channels", "image_size", "mean", "std")
# Where training scripts nest the weights; averaged ones first, as timm.models.clean_state_dict does.
_NESTS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile

State = dict[str, Tensor]


def save_teacher(module: nn.Module, path: Path, facts: Mapping[str, Any]) -> Path:
    """Write weights and facts as one .safetensors file that `load_teacher` takes alone; whole or not at all.

    facts: JSON types; must have architecture, num_classes, in_channels, image_size, mean and std.
    Raises: InputError: a fact is missing or has the wrong type.
    """
    checked = check_facts(dict(facts), where=path)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    return write_whole(path, lambda p: save_file(state, str(p), metadata={METADATA_KEY: json.dumps(checked)}))


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a .safetensors file, or None without any. Raises: InputError: not safetensors, or bad facts."""
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a safetensors file ({error})", where=path, fix="fetch or save it again") from error
    if text is None:
        return None
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise InputError(f"metadata '{METADATA_KEY}' is not JSON ({error})", where=path) from error
    return check_facts(facts, where=path)


def check_facts(facts: Any, *, where: object) -> dict[str, Any]:
    """The facts themselves when they can rebuild the model and its input. Raises: InputError: names the key."""
    if not isinstance(facts, dict):
        raise InputError(f"metadata '{METADATA_KEY}' is not a JSON object", where=where)
    for key in _REQUIRED:
        if key not in facts:
            raise InputError(f"metadata '{METADATA_KEY}' lacks '{key}'", where=where, fix=f"it needs {_REQUIRED}")
    if not isinstance(facts["architecture"], str) or not isinstance(facts["num_classes"], int):
        raise InputError(f"metadata '{METADATA_KEY}': architecture must be text, num_classes a number", where=where)
    try:
        preprocessing_of(facts)
    except InputError as error:
        raise InputError(f"metadata '{METADATA_KEY}': {error}", where=where) from error
    return facts


def preprocessing_of(facts: Mapping[str, Any]) -> Preprocessing:
    """The input that the facts describe."""
    return Preprocessing.from_dict({**facts, "channels": facts["in_channels"]})


def read_state(path: Path) -> State:
    """Float32 weights by name from .safetensors, .pt or .pth, unnested and without wrappers' prefixes; no code is run.

    Raises: InputError: the file is missing, is no checkpoint, needs unpickling, or holds no tensors or non-finite ones.
    """
    if not path.is_file():
        raise InputError("no such weights file", where=path)
    state = _unprefixed(_unnested(_load(path), path))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"'{name}' holds NaN or infinity", where=path, fix="use an earlier checkpoint")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def fit(model: nn.Module, state: State, *, num_classes: int, where: object) -> None:
    """Load weights that must match the model exactly.

    Raises: InputError: names the first key that is missing, unexpected or of another shape; or another class count.
    """
    expected = {k: v for k, v in model.state_dict().items() if k in state or not k.endswith("num_batches_tracked")}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    heads = [
        k for k in reshaped if expected[k].shape[:1] == (num_classes,) and expected[k].shape[1:] == state[k].shape[1:]
    ]
    if reshaped and heads == reshaped and not missing and not unexpected:
        raise class_count_error(state[heads[0]].shape[0], num_classes, where=where)
    if reshaped:
        key = reshaped[0]
        what = f"'{key}' is {tuple(state[key].shape)} in the file but {tuple(expected[key].shape)} in the model"
        raise InputError(f"{what}{_more(reshaped)}", where=where, fix="the weights are of another architecture")
    if missing:
        raise InputError(
            f"missing key '{missing[0]}'{_more(missing)}", where=where, fix=_other_architecture(unexpected)
        )
    if unexpected:
        what = f"unexpected key '{unexpected[0]}'{_more(unexpected)}"
        raise InputError(what, where=where, fix="the weights are of another architecture")
    model.load_state_dict(state, strict=False)


def class_count_error(teacher_classes: int, data_classes: int, *, where: object) -> InputError:
    """The error for a teacher of other classes than the data's."""
    what = f"the teacher has {teacher_classes} classes, the data have {data_classes}"
    return InputError(what, where=where, fix="use a teacher trained on these classes (or --data with its classes)")


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"not a safetensors file ({error})", where=path, fix="fetch or save it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = "" if (name := _refused_global(error)) is None else f" (it holds {name})"
        raise InputError(
            f"not a checkpoint of plain tensors{wanted}; edgekd loads only tensors, because unpickling runs code",
            where=path,
            fix="where you trust it: safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')",
        ) from error
    except Exception as error:  # a damaged archive may raise anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"not a checkpoint ({reason})", where=path, fix="expected .safetensors, .pt or .pth"
        ) from error


def _refused_global(error: Exception) -> str | None:
    """The class that weights_only=True refused, from torch's text ('Unsupported global: GLOBAL x.y was not ...')."""
    _, found, rest = str(error).partition("GLOBAL ")
    return rest.split()[0] if found and rest.split() else None


def _unnested(document: Any, path: Path) -> State:
    for _ in range(4):
        if not isinstance(document, Mapping):
            break
        tensors = {k: v for k, v in document.items() if isinstance(k, str) and isinstance(v, Tensor)}
        nest = next((key for key in _NESTS if isinstance(document.get(key), Mapping)), None)
        if nest is None:
            if tensors:
                return tensors
            break
        document = document[nest]
    raise InputError(
        "holds no weights by name",
        where=path,
        fix="expected a state_dict, at the top or under state_dict, model or ema",
    )


def _unprefixed(state: State) -> State:
    # AveragedModel stores its counter beside the wrapped model's weights.
    state = {key: tensor for key, tensor in state.items() if key != "n_averaged"}
    for prefix in (*_PREFIXES, *_PREFIXES):
        if state and all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: tensor for key, tensor in state.items()}
    return state


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _other_architecture(unexpected: list[str]) -> str:
    seen = f"; the file has '{unexpected[0]}' instead" if unexpected else ""
    return f"the weights are of another architecture{seen}"
