from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from edgekd.errors import InputError
from edgekd.quant import QatModel, convert, prepare_qat
from edgekd.quant.graph import aten, nodes_of
from edgekd.quant.qat import BN_EPS, BN_MOMENTUM, BN_TRAINING
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine")


def norms(model: QatModel) -> list[torch.fx.Node]:
    return nodes_of(model.graph, aten.batch_norm.default)


def ranges(model: QatModel) -> list[float]:
    return [q.activation_post_process.max_val.item() for q in model.fake_quantisers() if not q.is_per_channel]


def test_batch_norms_keep_their_momentum_and_eps(fresh) -> None:
    literals = [node.args[BN_MOMENTUM : BN_EPS + 1] for node in norms(fresh())]
    assert literals == [(0.03, 1e-3)] * 3 + [(0.1, 1e-5)]


def test_the_fused_weight_scale_uses_the_batch_norms_own_eps(fresh) -> None:
    model = fresh()
    sums = [node.args[1] for node in nodes_of(model.graph, aten.add.Tensor) if isinstance(node.args[1], float)]
    assert sums == [1e-3] * 3 + [1e-5]


def test_switching_modes_changes_training_flags_and_nothing_else(fresh) -> None:
    model = fresh()
    for mode in (False, True):
        model.train(mode)
        (dropout,) = nodes_of(model.graph, aten.dropout.default)
        assert dropout.args[1:] == (0.3, mode)
        assert {node.args[BN_TRAINING] for node in norms(model)} == {mode}
        assert all(module.training is mode for module in model.modules())


def test_evaluating_changes_no_state(fresh, images) -> None:
    model = fresh().eval()
    model(images)  # takes the weights' ranges after the last step
    before = copy.deepcopy(model.state_dict())
    model(images * 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_moves_batch_norm_statistics_until_they_are_frozen(fresh, images) -> None:
    model = fresh()
    statistics = next(value for name, value in model.named_buffers() if name.endswith("running_mean"))
    before = statistics.clone()
    model(images * 2)
    assert not torch.equal(statistics, before)
    model.freeze_bn_statistics()
    before = statistics.clone()
    model(images * 3)
    assert torch.equal(statistics, before)
    (dropout,) = nodes_of(model.graph, aten.dropout.default)
    assert dropout.args[2] is True


def test_frozen_observers_keep_their_ranges_in_train_mode(fresh, images) -> None:
    model = fresh()
    before = ranges(model)
    model(images * 2)
    assert ranges(model) != before
    model.freeze_observers()
    before = ranges(model)
    model(images * 3)
    assert ranges(model) == before


def test_freezing_outlives_a_round_of_evaluation(fresh, images) -> None:
    model = fresh()
    model.freeze_observers()
    model.freeze_bn_statistics()
    model.eval()
    before = ranges(model)
    model.train()(images * 3)
    assert ranges(model) == before
    assert {node.args[BN_TRAINING] for node in norms(model)} == {False}


def test_any_batch_size_runs_and_taps_come_back_by_name(fresh) -> None:
    model = fresh().eval()
    for batch in (1, 2, 7):
        logits, taps = model(torch.randn(batch, 3, 16, 16))
        assert logits.shape == (batch, 5)
        assert taps["features"].shape == (batch, 8, 8, 8)


def test_a_model_without_taps_returns_bare_logits(make_net, images) -> None:
    model = prepare_qat(make_net(), images[:1], SPEC)
    assert model(images).shape == (16, 5)


def test_gradients_reach_every_parameter(fresh, images) -> None:
    model = fresh()
    logits, _ = model(images)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_preparing_leaves_the_model_alone_and_starts_close_to_it(make_net, images) -> None:
    net = make_net().train()
    before = copy.deepcopy(net.state_dict())
    model = prepare_qat(net, images, SPEC).eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    expected, got = net.eval()(images), model(images)
    assert (got - expected).square().sum() < 0.01 * expected.square().sum()


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_training_resumes_from_a_state_dict_on_a_newly_prepared_model(
    fresh, make_net, images, tmp_path, scheme
) -> None:
    model = fresh(scheme)
    model.freeze_observers()
    torch.save(model.state_dict(), tmp_path / "last.pt")
    other = prepare_qat(make_net(("features",)), images[:2] * 9, QuantSpec(scheme=scheme))
    result = other.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(other.eval()(images)[0], model.eval()(images)[0])
    before = ranges(other)
    other.train()(images * 4)
    assert ranges(other) == before


def test_a_deep_copy_is_independent(fresh, images) -> None:
    model = fresh().eval()
    other = copy.deepcopy(model)
    expected = model(images)[0]
    assert torch.equal(other(images)[0], expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.train()
    assert torch.equal(model(images)[0], expected)
    assert not model.training


def test_bfloat16_autocast_trains(fresh, images) -> None:
    model = fresh()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(images)
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_observing_moves_ranges_and_not_statistics(fresh, images) -> None:
    model = fresh()
    before, statistics = ranges(model), [b.clone() for n, b in model.named_buffers() if "running" in n]
    model.observe(images * 3)
    assert ranges(model) != before
    assert model.training
    after = [b for n, b in model.named_buffers() if "running" in n]
    assert all(torch.equal(a, b) for a, b in zip(after, statistics, strict=True))


def test_only_the_wanted_taps_are_kept(make_net, images) -> None:
    model = prepare_qat(make_net(("features", "convolved")), images, SPEC, taps=("features",))
    assert set(model(images)[1]) == {"features"}


class TapsTheNorm(nn.Module):
    """Returns the batch norm's output from before its ReLU6, as many distillation losses want it."""

    def __init__(self, net: nn.Module, *, tap: bool) -> None:
        super().__init__()
        self.net, self.tap = net, tap

    def forward(self, x):
        normed = self.net.stem[1](self.net.stem[0](x))
        kept = normed.clone()
        logits = self.net.head(self.net.features(self.net.stem[2](normed)).mean((2, 3)))
        return (logits, {"normed": kept}) if self.tap else logits


def test_a_tap_does_not_change_what_is_quantised(make_net, images) -> None:
    plain, tapped = (prepare_qat(TapsTheNorm(make_net(), tap=tap), images, SPEC).eval() for tap in (False, True))
    assert len(ranges(plain)) == len(ranges(tapped))
    assert torch.equal(plain(images), tapped(images)[0])


def test_a_tap_between_a_convolution_and_its_batch_norm_is_refused(make_net, images) -> None:
    class TapsTheConvolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            convolved = self.net.stem[0](x)
            pooled = self.net.features(self.net.stem[2](self.net.stem[1](convolved))).mean((2, 3))
            return self.net.head(pooled), {"convolved": convolved}

    with pytest.raises(InputError, match="read before its batch norm; put the tap on the batch norm"):
        prepare_qat(TapsTheConvolution(), images, SPEC)


def test_an_unknown_tap_is_refused(make_net, images) -> None:
    with pytest.raises(InputError, match=r"no tap 'layer9'.*features"):
        prepare_qat(make_net(("features",)), images, SPEC, taps=("layer9",))


@pytest.mark.parametrize("example", [torch.zeros(3, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)])
def test_an_example_that_is_no_normalised_batch_is_refused(make_net, example) -> None:
    with pytest.raises(InputError, match=r"expected float \(batch, channels, height, width\)"):
        prepare_qat(make_net(), example, SPEC)


class Branch(nn.Module):
    """x + branch(x), the branch left out by chance in train mode in the way of `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.drop: nn.Module = {
            "torchvision": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
            "timm": lambda: timm.layers.DropPath(0.5),
            "by hand": nn.Identity,
        }[kind]()
        self.by_hand = kind == "by hand"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image).relu()
        branch = self.drop(self.branch(x))
        if self.by_hand and self.training:
            branch = branch * torch.rand(1)
        return (x + branch).mean((2, 3))


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_branches_left_out_by_chance_are_always_taken_in_the_deployed_program(kind: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    qat = prepare_qat(Branch(kind), images, SPEC)
    assert torch.equal(qat(images), qat(images)), "nothing is drawn in train mode either"
    program = convert(qat).module(check_guards=False)
    wanted = qat.eval()(images[:1])
    assert torch.equal(program(images[:1]), program(images[:1]))
    assert (program(images[:1]) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_chance_that_no_switch_reaches_is_refused() -> None:
    with pytest.raises(InputError, match=r"draws random numbers while training .*nn\.Dropout"):
        prepare_qat(Branch("by hand"), torch.randn(8, 3, 16, 16), SPEC)
