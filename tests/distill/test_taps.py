"""Taps read what really flowed, and say which name is wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgekd.distill import WithTaps, default_tap
from edgekd.distill.taps import forward_with_taps, parse_tap
from edgekd.errors import InputError


class Net(nn.Module):
    """Features whose convolution is followed by an in-place ReLU, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2)
        )
        self.spare = nn.Linear(2, 2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x))


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tap", "same"), [("features.-1", "features.2"), ("features.-3@out", "features.0"), ("-1@in", "fc@in")]
)
def test_a_negative_number_counts_from_the_end(tap: str, same: str) -> None:
    net = Net()
    torch.testing.assert_close(
        forward_with_taps(net, IMAGES, [tap])[1][tap], forward_with_taps(net, IMAGES, [same])[1][same]
    )


def test_a_tap_before_an_in_place_relu_keeps_its_negative_values() -> None:
    net = Net()
    _, taps = forward_with_taps(net, IMAGES, ["features.0", "features.1@in", "features.1"])
    assert taps["features.0"].min() < 0
    torch.testing.assert_close(taps["features.1@in"], net.features[0](IMAGES))
    torch.testing.assert_close(taps["features.1"], taps["features.0"].relu())


def test_gradients_flow_through_a_tap() -> None:
    net = Net()
    forward_with_taps(net, IMAGES, ["features.0"])[1]["features.0"].sum().backward()
    assert net.features[0].weight.grad is not None
    assert net.fc.weight.grad is None


def test_no_hook_outlives_the_forward() -> None:
    net = Net()
    forward_with_taps(net, IMAGES, ["features.0", "fc@in"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_an_unknown_tap_is_named_with_the_nearest_module() -> None:
    with pytest.raises(InputError, match=r"tap 'featuers\.2': Net has no module .* did you mean 'features\.2'"):
        forward_with_taps(Net(), IMAGES, ["featuers.2"])


def test_a_number_beyond_the_children_is_unknown() -> None:
    with pytest.raises(InputError, match=r"tap 'features\.-4': Net has no module"):
        forward_with_taps(Net(), IMAGES, ["features.-4"])


def test_a_tap_that_never_fires_is_an_error_and_not_stale_data() -> None:
    with pytest.raises(InputError, match="tap 'spare': its module never ran"):
        forward_with_taps(Net(), IMAGES, ["spare"])


def test_a_module_that_runs_twice_is_ambiguous() -> None:
    with pytest.raises(InputError, match="tap 'fc': its module ran 2 times"):
        forward_with_taps(Reused(), torch.zeros(1, 3), ["fc"])


@pytest.mark.parametrize("text", ["", "@in", "fc@side"])
def test_a_malformed_tap_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a module path"):
        parse_tap(text)


def test_with_taps_survives_a_deep_copy_and_reads_the_copy() -> None:
    wrapped = copy.deepcopy(original := WithTaps(Net(), ["features.-1"]))
    with torch.no_grad():
        original.model.features[2].weight.zero_()
    assert wrapped(IMAGES)[1]["features.-1"].abs().sum() > original(IMAGES)[1]["features.-1"].abs().sum()


def test_taps_stay_outputs_of_an_exported_graph() -> None:
    wrapped = WithTaps(Net().eval(), ["features.0", "features.-1", "fc@in"])
    expected_logits, expected = wrapped(IMAGES)
    graph = torch.export.export(wrapped, (IMAGES,), strict=False).module()
    logits, taps = graph(IMAGES)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(taps, expected)


def test_the_default_tap_is_the_last_feature_map_that_has_more_than_one_pixel() -> None:
    net = Net()
    net.features.append(nn.AdaptiveAvgPool2d(1))
    assert default_tap(net, IMAGES) == "features.2"


def test_the_default_tap_names_the_container_rather_than_its_last_layer() -> None:
    assert default_tap(Net(), IMAGES) == "features"


def test_the_default_tap_of_a_model_without_maps_is_the_input_of_its_last_linear() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    assert default_tap(net, IMAGES) == "3@in"


def test_the_default_tap_leaves_modes_and_batch_norms_alone() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).train()
    default_tap(net, IMAGES)
    assert net.training
    assert net[0].running_mean.abs().sum() == 0


def test_a_model_with_nothing_to_tap_says_so() -> None:
    with pytest.raises(InputError, match="no feature map and no Linear to tap"):
        default_tap(nn.Flatten(), IMAGES)
