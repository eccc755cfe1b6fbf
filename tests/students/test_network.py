"""Students are what their spec says: same costs as the fast arithmetic, same forward shapes, same JSON."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgekd.latency import features, trace_cost
from edgekd.latency.features import NAMES
from edgekd.students import StageSpec, StudentSpec, build, layers_of, parts_of, work_of
from edgekd.students.spaces import STAGE_SPACES, Task


def student(*stages: StageSpec, image_size: int = 28, stem_stride: int = 1, activation: str = "relu6") -> StudentSpec:
    return StudentSpec.model_validate(
        {
            "image_size": image_size,
            "in_channels": 1,
            "num_classes": 10,
            "stem_channels": 16,
            "stem_stride": stem_stride,
            "stages": [stage.model_dump() for stage in stages],
            "head_channels": 64,
            "activation": activation,
        }
    )


def stage(block: str, expansion: int, **more: object) -> StageSpec:
    return StageSpec.model_validate({"block": block, "expansion": expansion, "channels": 24, "depth": 2, **more})


VARIANTS = [
    student(stage(block, expansion, stride=stride, kernel=kernel, squeeze_excite=gate))
    for block, expansion, stride, (kernel, gate) in itertools.product(
        ["inverted", "fused"], [1, 4], [1, 2], [(3, False), (5, True)]
    )
]


VARIANTS += [student(stage("basic", 1, stride=stride, squeeze_excite=gate)) for stride, gate in [(1, False), (2, True)]]
VARIANTS += [
    student(stage("attention", 2, stride=stride, channels=channels)) for stride, channels in [(1, 16), (2, 32)]
]


@pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: "-".join(map(str, spec.stages[0].model_dump().values())))
def test_fast_arithmetic_agrees_with_tracing_kernel_by_kernel(spec: StudentSpec) -> None:
    traced = trace_cost(build(spec), (1, 1, 28, 28))
    counted = [(op.kind, op.macs, op.read_elements, op.write_elements, op.weight_elements) for op in traced.ops]
    assert [layer[:5] for layer in layers_of(spec)] == counted
    assert max(layer.live_elements for layer in layers_of(spec)) == traced.peak_activation_elements


VARIED = [*VARIANTS, *(student(stage(*kind), activation="hardswish") for kind in [("inverted", 4), ("basic", 1)])]


@pytest.mark.parametrize("spec", VARIED, ids=range(len(VARIED)))
def test_a_student_has_the_features_of_its_trace(spec: StudentSpec) -> None:
    """For both kinds of runtime, so that a predictor prices its parts as it prices the whole."""
    traced = trace_cost(build(spec), (1, 1, 28, 28))
    kept = [name not in ("folded", "folded_elements") for name in NAMES]  # work on weights: batch norms are folded
    assert features(work_of(parts_of(spec)))[kept] == pytest.approx(features(traced)[kept])


@pytest.mark.parametrize(("name", "image_size"), zip(STAGE_SPACES, [28, 32, 64, 96], strict=True))
def test_a_student_of_each_space_agrees_with_tracing_and_runs(name: str, image_size: int) -> None:
    space = STAGE_SPACES[name](Task((image_size,), 3, 7))
    body = len(space.bodies) // 2
    spec = space.spec((body, tuple(len(choices) // 2 for choices in space.bodies[body].choices)))
    model = build(spec).eval()
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)
    macs = trace_cost(model, (1, 3, image_size, image_size)).macs
    assert sum(layer.macs for layer in layers_of(spec)) == macs


def test_last_feature_is_the_head_convolutions_map() -> None:
    spec = student(stage("fused", 1, stride=2), stage("inverted", 4, stride=2))
    found: list[torch.Size] = []
    model = build(spec)
    model.features[-1].register_forward_hook(lambda _module, _inputs, out: found.append(out.shape))
    model(torch.zeros(3, 1, 28, 28))
    assert found == [torch.Size([3, 64, spec.final_size, spec.final_size])]
    assert spec.final_size == 7


def test_only_layers_that_every_runtime_runs_in_int8() -> None:
    kinds = {
        type(m) for m in build(student(stage("fused", 1), stage("inverted", 4))).modules() if not list(m.children())
    }
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU6, nn.Linear}


def test_activations_are_not_in_place_because_taps_would_read_overwritten_maps() -> None:
    model = build(student(stage("inverted", 4), activation="relu"))
    assert [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)] == [False] * 6


def test_the_residual_is_added_where_shapes_allow_and_only_there() -> None:
    model = build(student(stage("inverted", 4, stride=2, depth=3)))
    blocks = list(model.features[1])
    assert [block.residual for block in blocks] == [False, True, True]


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(VARIANTS[0]).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("spec", VARIANTS[:4])
def test_a_spec_survives_json(spec: StudentSpec) -> None:
    assert StudentSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 20}, "multiple of 8"),
        ({"kernel": 4}, "Input should be 3, 5 or 7"),
        ({"stride": 3}, "Input should be 1 or 2"),
        ({"block": "basic"}, "a basic block has no expansion, got 4"),
        ({"block": "attention"}, "multiple of 16 channels"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"width": 24}, "Extra inputs are not permitted"),
    ],
)
def test_what_no_runtime_would_want_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageSpec.model_validate({"channels": 24, "depth": 1, **change})


def test_a_map_shrunk_to_a_point_is_refused() -> None:
    with pytest.raises(ValidationError, match="last feature map is 1 px for images of 8 px"):
        student(*[stage("fused", 1, stride=2)] * 3, image_size=8)
