"""Any spec to its module."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgekd.students.network import build_stages
from edgekd.students.pruning import pruned
from edgekd.students.spec import AnySpec, PrunedSpec, StudentSpec, ZooSpec
from edgekd.teachers import architectures


def build(spec: AnySpec) -> nn.Module:
    """The module of a spec, freshly initialised from torch's global generator; a zoo network's weights are loaded.

    Raises: InputError: no such network in the installed library, or its weights do not fit.

    >>> import torch
    >>> from edgekd.students.spec import StageSpec
    >>> stage = StageSpec(channels=16, depth=2, stride=2)
    >>> sizes = {"image_size": 28, "in_channels": 1, "num_classes": 10, "stem_channels": 8, "head_channels": 32}
    >>> build(StudentSpec(stages=(stage,), **sizes))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if isinstance(spec, StudentSpec):
        return build_stages(spec)
    name = spec.name if isinstance(spec, ZooSpec) else spec.architecture
    module = architectures.build(
        name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size
    )
    if isinstance(spec, PrunedSpec):
        return pruned(module, spec)
    if spec.weights is not None:
        _load(module, spec, Path(spec.weights))
    return module


def _load(module: nn.Module, spec: ZooSpec, weights: Path) -> None:
    """All weights that fit by name and shape; a classifier of other classes keeps its initial ones."""
    from edgekd.teachers.checkpoint import read_state

    state, own = read_state(weights), module.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(own) / 2:
        from edgekd.errors import InputError

        what = f"{len(fitting)} of the {len(own)} tensors of '{spec.name}' are in it"
        raise InputError(what, where=weights, fix="the weights are of another architecture")
    module.load_state_dict({**own, **fitting})
