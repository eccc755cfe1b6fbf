"""Each MIL operator against torch or its written definition. No Core ML package is needed: only the operators run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgekd.runtimes.mil_ops import OPS

X = torch.linspace(-4, 4, 2 * 3 * 7 * 6).reshape(2, 3, 7, 6)


def run(kind: str, **inputs):
    return OPS[kind](inputs)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("relu6", {}, F.relu6(X)),
        ("silu", {}, F.silu(X)),
        ("gelu", {"mode": "EXACT"}, F.gelu(X)),
        ("gelu", {"mode": "TANH_APPROXIMATION"}, F.gelu(X, approximate="tanh")),
        ("sigmoid_hard", {"alpha": np.float32(1 / 6), "beta": np.float32(0.5)}, F.hardsigmoid(X)),
        ("clip", {"alpha": np.float32(0), "beta": np.float32(6)}, F.relu6(X)),
        ("leaky_relu", {"alpha": np.float32(0.1)}, F.leaky_relu(X, 0.1)),
        ("softmax", {"axis": np.int32(1)}, torch.softmax(X, 1)),
        ("reduce_mean", {"axes": ints(2, 3), "keep_dims": np.bool_(True)}, X.mean((2, 3), keepdim=True)),
        ("reduce_max", {"axes": ints(-1), "keep_dims": np.bool_(False)}, X.amax(-1)),
        ("add", {"y": np.float32(1.5)}, X + 1.5),
        ("real_div", {"y": X + 5}, X / (X + 5)),
        ("transpose", {"perm": ints(0, 2, 3, 1)}, X.permute(0, 2, 3, 1)),
        ("reshape", {"shape": ints(0, -1)}, X.reshape(2, -1)),
        ("expand_dims", {"axes": ints(0, -1)}, X[None, ..., None]),
        ("tile", {"reps": ints(1, 2, 1, 1)}, X.repeat(1, 2, 1, 1)),
        ("cast", {"dtype": "fp16"}, X.half().float()),
        ("slice_by_size", {"begin": ints(0, 1, 2, 0), "size": ints(2, 2, -1, 3)}, X[:, 1:3, 2:, :3]),
        ("gather", {"indices": ints(2, -3), "axis": np.int32(1)}, X[:, [2, 0]]),
    ],
)
def test_an_operator_on_one_tensor_computes_what_torch_does(kind, arguments, expected):
    torch.testing.assert_close(run(kind, x=X, **arguments), expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kind", ["same", "same_lower"])
def test_same_padding_gives_ceil_of_size_over_stride_and_puts_the_odd_one_on_its_side(kind, stride):
    weight = torch.ones(1, 3, 4, 4)
    arguments = {"strides": ints(stride, stride), "dilations": ints(1, 1), "pad_type": kind, "groups": np.int32(1)}
    out = run("conv", x=X, weight=weight, **arguments)
    assert out.shape[2:] == (-(-7 // stride), -(-6 // stride))
    flipped = run("conv", x=X.flip(2, 3), weight=weight, **{**arguments, "pad_type": "same"})
    if kind == "same_lower" and stride == 1:
        torch.testing.assert_close(out, flipped.flip(2, 3))


def test_convolution_takes_pads_as_before_and_after_of_each_axis_in_order():
    weight = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    bias = torch.arange(6.0)
    got = run(
        "conv",
        x=X,
        weight=weight,
        bias=bias,
        strides=ints(2, 1),
        dilations=ints(1, 1),
        pad_type="custom",
        pad=ints(1, 2, 0, 3),
        groups=np.int32(3),
    )
    torch.testing.assert_close(got, F.conv2d(F.pad(X, (0, 3, 1, 2)), weight, bias, stride=(2, 1), groups=3))


def test_average_pooling_leaves_padding_out_only_when_told():
    window = {"kernel_sizes": ints(3, 3), "strides": ints(2, 2), "pad_type": "custom", "pad": ints(1, 1, 1, 1)}
    excluded = run("avg_pool", x=X, exclude_padding_from_average=np.bool_(True), **window)
    included = run("avg_pool", x=X, exclude_padding_from_average=np.bool_(False), **window)
    torch.testing.assert_close(excluded, F.avg_pool2d(X, 3, 2, 1, count_include_pad=False))
    torch.testing.assert_close(included, F.avg_pool2d(X, 3, 2, 1, count_include_pad=True))


def test_max_pooling_never_picks_padding():
    window = {"kernel_sizes": ints(3, 3), "strides": ints(2, 2), "pad_type": "custom", "pad": ints(1, 1, 1, 1)}
    torch.testing.assert_close(run("max_pool", x=X - 100, **window), F.max_pool2d(X - 100, 3, 2, 1))


def test_normalisations_agree_with_torch():
    gamma, beta = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])
    statistics = {"mean": torch.tensor([0.0, 1.0, 2.0]), "variance": torch.tensor([1.0, 2.0, 3.0])}
    got = run("batch_norm", x=X, gamma=gamma, beta=beta, epsilon=np.float32(1e-3), **statistics)
    torch.testing.assert_close(got, F.batch_norm(X, *statistics.values(), gamma, beta, eps=1e-3))
    scale, shift = torch.randn(7, 6), torch.randn(7, 6)
    got = run("layer_norm", x=X, axes=ints(2, 3), gamma=scale, beta=shift, epsilon=np.float32(1e-5))
    torch.testing.assert_close(got, F.layer_norm(X, (7, 6), scale, shift))


def test_layer_norm_over_channels_first_scales_along_the_channel():
    scale, shift = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])
    got = run("layer_norm", x=X, axes=ints(1), gamma=scale, beta=shift, epsilon=np.float32(1e-5))
    expected = F.layer_norm(X.permute(0, 2, 3, 1), (3,), scale, shift).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, expected)


def test_matmul_transposes_the_operands_it_is_told_to():
    a, b = torch.randn(2, 4, 3), torch.randn(2, 5, 4)
    got = run("matmul", x=a, y=b, transpose_x=np.bool_(True), transpose_y=np.bool_(True))
    torch.testing.assert_close(got, a.transpose(1, 2) @ b.transpose(1, 2))


def test_quantise_rounds_half_to_even_and_saturates_and_dequantise_undoes_it():
    x = torch.tensor([-1000.0, 0.25, 0.75, 1.0, 1000.0])
    codes = run("quantize", input=x, scale=np.float32(0.5), zero_point=np.int8(3), output_dtype="int8")
    assert codes.tolist() == [-128.0, 3.0, 5.0, 5.0, 127.0]
    back = run("dequantize", input=codes, scale=np.float32(0.5), zero_point=np.int8(3))
    assert back.tolist() == [-65.5, 0.0, 1.0, 1.0, 62.0]


def test_dequantise_per_channel_scales_along_its_axis():
    codes = torch.ones(2, 3, dtype=torch.int8)
    scales = torch.tensor([1.0, 2.0, 3.0])
    assert run("dequantize", input=codes, scale=scales, axis=np.int32(-1)).tolist() == [[1.0, 2.0, 3.0]] * 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"begin": ints(0, 1, 0, 0), "end": ints(0, 3, 5, 0), "end_mask": ints(1, 0, 0, 1)}, X[:, 1:3, :5]),
        ({"begin": ints(0, 0, 6, 0), "end": ints(2, 3, 0, 6), "stride": ints(1, 1, -2, 1)}, X[:, :, [6, 4, 2]]),
        ({"begin": ints(1, 0, 0, -1), "end": ints(2, 3, 7, 6), "squeeze_mask": ints(1, 0, 0, 1)}, X[1, :, :, -1]),
        ({"begin": ints(0, -2, 0, 0), "end": ints(2, 3, 7, 6), "begin_mask": ints(1, 0, 1, 1)}, X[:, -2:]),
    ],
)
def test_slice_by_index_follows_pythons_slices_with_masks(arguments, expected):
    torch.testing.assert_close(run("slice_by_index", x=X, **arguments), expected)


def test_split_gives_equal_parts_or_the_sizes_asked_for():
    assert [part.shape[1] for part in run("split", x=X, num_splits=np.int32(3), axis=np.int32(1))] == [1, 1, 1]
    assert [part.shape[2] for part in run("split", x=X, split_sizes=ints(2, 5), axis=np.int32(2))] == [2, 5]


def test_pad_reflects_or_fills():
    torch.testing.assert_close(
        run("pad", x=X, pad=ints(1, 0, 0, 2), constant_val=np.float32(7)), F.pad(X, (0, 2, 1, 0), value=7)
    )
    reflected = run("pad", x=X, pad=ints(1, 1, 2, 2), mode="reflect")
    torch.testing.assert_close(reflected, F.pad(X, (2, 2, 1, 1), mode="reflect"))


def test_squeeze_drops_the_axes_it_is_told_or_all_of_length_one():
    x = torch.zeros(1, 4, 1)
    assert run("squeeze", x=x, axes=ints(0)).shape == (4, 1)
    assert run("squeeze", x=x).shape == (4,)


@pytest.mark.parametrize(
    ("stride", "pad", "extra", "dilation", "groups"),
    [(2, 1, 1, 1, 1), (2, 0, 0, 1, 3), (3, 1, 2, 1, 1), (1, 2, 0, 2, 1), (2, 1, 0, 1, 3)],
)
def test_transposed_convolution_crops_its_padding_and_keeps_its_output_padding(stride, pad, extra, dilation, groups):
    weight, bias = torch.randn(3, 6 // groups, 4, 4), torch.randn(6)
    settings = {"stride": stride, "padding": pad, "output_padding": extra, "dilation": dilation, "groups": groups}
    expected = F.conv_transpose2d(X, weight, bias, **settings)
    got = run(
        "conv_transpose",
        x=X,
        weight=weight,
        bias=bias,
        strides=ints(stride, stride),
        dilations=ints(dilation, dilation),
        groups=np.int32(groups),
        pad_type="custom",
        pad=ints(pad, pad, pad, pad),
        output_shape=ints(*expected.shape),
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("arguments", "aligned"),
    [({"align_corners": np.bool_(True)}, True), ({"align_corners": np.bool_(False)}, False)],
)
def test_upsampling_by_a_factor_agrees_with_torch(arguments, aligned):
    factors = {"scale_factor_height": np.float32(2), "scale_factor_width": np.float32(3)}
    expected = F.interpolate(X, size=(14, 18), mode="bilinear", align_corners=aligned)
    torch.testing.assert_close(run("upsample_bilinear", x=X, **factors, **arguments), expected)
    nearest = run("upsample_nearest_neighbor", x=X, **factors)
    torch.testing.assert_close(nearest, F.interpolate(X, size=(14, 18), mode="nearest"))


@pytest.mark.parametrize(("mode", "aligned"), [("STRICT_ALIGN_CORNERS", True), ("UNALIGN_CORNERS", False)])
@pytest.mark.parametrize("size", [(11, 4), (1, 9), (7, 6)])
def test_resizing_to_a_size_agrees_with_torch(mode, aligned, size):
    expected = F.interpolate(X, size=size, mode="bilinear", align_corners=aligned)
    target = {"target_size_height": np.int32(size[0]), "target_size_width": np.int32(size[1])}
    torch.testing.assert_close(run("resize_bilinear", x=X, sampling_mode=mode, **target), expected)
    shape = {"shape": ints(2, 0, *size), "resized_dims": np.uint32(2)}
    torch.testing.assert_close(run("resize", x=X, sampling_mode=mode, **shape), expected)
    nearest = F.interpolate(X, size=size, mode="nearest")
    torch.testing.assert_close(run("resize_nearest_neighbor", x=X, **target), nearest)
    torch.testing.assert_close(run("resize", x=X, interpolation_mode="NEAREST_NEIGHBOR", **shape), nearest)


@pytest.mark.parametrize(
    ("mode", "points"), [("DEFAULT", [0, 0.4, 0.8, 1, 1]), ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9])]
)
def test_the_sampling_modes_that_torch_has_not_give_the_points_of_their_documentation(mode, points):
    line = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    sizes = {"target_size_height": np.int32(1), "target_size_width": np.int32(5)}
    assert run("resize_bilinear", x=line, sampling_mode=mode, **sizes).flatten().tolist() == pytest.approx(points)


def test_pixel_shuffle_and_depth_to_space_order_their_channels_differently():
    x = torch.arange(2 * 12 * 2 * 3.0).reshape(2, 12, 2, 3)
    shuffled = run("pixel_shuffle", x=x, upscale_factor=np.int32(2))
    torch.testing.assert_close(shuffled, F.pixel_shuffle(x, 2))
    torch.testing.assert_close(run("pixel_unshuffle", x=shuffled, downscale_factor=np.uint32(2)), x)
    spread = run("depth_to_space", x=x, block_size=np.int32(2))
    assert spread[0, 0, 0, :2].tolist() == [x[0, 0, 0, 0], x[0, 3, 0, 0]]
    torch.testing.assert_close(run("space_to_depth", x=spread, block_size=np.int32(2)), x)


def test_joining_interleaved_is_a_channel_shuffle():
    left, right = X, X + 1
    got = run("concat", values=[left, right], axis=np.int32(1), interleave=np.bool_(True))
    torch.testing.assert_close(got, torch.cat([left, right], 1).reshape(2, 2, 3, 7, 6).transpose(1, 2).flatten(1, 2))
    plain = run("concat", values=[left, right], axis=np.int32(1), interleave=np.bool_(False))
    torch.testing.assert_close(plain, torch.cat([left, right], 1))


def test_attention_and_einsum_agree_with_torch():
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    got = run("scaled_dot_product_attention", query=query, key=key, value=value, attn_mask=mask)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    pair = [torch.randn(2, 3, 4, 5), torch.randn(2, 5, 4, 3)]
    torch.testing.assert_close(
        run("einsum", values=pair, equation="nchw,nwhu->nchu"), torch.einsum("nchw,nwhu->nchu", *pair)
    )


@pytest.mark.parametrize("ascending", [True, False])
def test_top_k_gives_values_and_indices_on_the_side_asked_for(ascending):
    values, indices = run("topk", x=X, k=np.int32(2), axis=np.int32(1), ascending=np.bool_(ascending))
    torch.testing.assert_close(values, X.topk(2, dim=1, largest=not ascending).values)
    torch.testing.assert_close(X.gather(1, indices.long()), values)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("reduce_l1_norm", {"axes": ints(1), "keep_dims": np.bool_(False)}, X.abs().sum(1)),
        ("reduce_l2_norm", {"axes": ints(1), "keep_dims": np.bool_(False)}, X.norm(dim=1)),
        ("reduce_log_sum_exp", {"axes": ints(1, 2), "keep_dims": np.bool_(True)}, X.logsumexp((1, 2), keepdim=True)),
        ("reduce_min", {"axes": ints(-1), "keep_dims": np.bool_(True)}, X.amin(-1, keepdim=True)),
        ("reduce_prod", {"axes": ints(1, 2), "keep_dims": np.bool_(False)}, X.prod(2).prod(1)),
        ("reduce_sum", {}, X.sum()),
        ("reduce_sum_square", {"axes": ints(0), "keep_dims": np.bool_(False)}, X.square().sum(0)),
        ("reduce_argmax", {"axis": np.int32(2), "keep_dims": np.bool_(False)}, X.argmax(2).int()),
        ("argsort", {"axis": np.int32(1), "ascending": np.bool_(True)}, X.argsort(dim=1, stable=True).int()),
        ("cumsum", {"axis": np.int32(2)}, X.cumsum(2)),
        ("cumsum", {"axis": np.int32(2), "reverse": np.bool_(True)}, X.flip(2).cumsum(2).flip(2)),
        ("reverse", {"axes": ints(3)}, X.flip(3)),
        ("band_part", {"lower": np.int32(1), "upper": np.int32(0)}, X.tril().triu(-1)),
        ("flatten2d", {"axis": np.int32(2)}, X.reshape(6, 42)),
        ("gather_along_axis", {"indices": torch.zeros(2, 1, 7, 6, dtype=torch.int32), "axis": np.int32(1)}, X[:, :1]),
        ("gather_nd", {"indices": torch.tensor([[1, 2], [0, 0]])}, torch.stack([X[1, 2], X[0, 0]])),
        ("l2_norm", {"epsilon": np.float32(0)}, X / X.flatten(1).norm(dim=1).reshape(2, 1, 1, 1)),
        ("instance_norm", {"epsilon": np.float32(1e-5)}, F.instance_norm(X)),
        ("local_response_norm", {"size": np.int32(3)}, F.local_response_norm(X, 3)),
        ("clamped_relu", {"alpha": np.float32(0.1), "beta": np.float32(2)}, F.leaky_relu(X, 0.1).clamp(max=2)),
        ("greater_equal", {"y": np.float32(0)}, X >= 0),
        ("mod", {"y": np.float32(1.5)}, torch.remainder(X, 1.5)),
        ("fill_like", {"ref_tensor": X, "value": np.float32(2)}, torch.full_like(X, 2)),
        ("shape", {}, ints(2, 3, 7, 6)),
        ("sliding_windows", {"axis": np.int32(2), "size": np.int32(3)}, X.unfold(2, 3, 1).movedim(-1, 3)),
    ],
)
def test_reductions_and_rearrangements_agree_with_torch(kind, arguments, expected):
    torch.testing.assert_close(run(kind, x=X, **arguments), expected)


def test_slice_update_replaces_what_slice_by_index_gives():
    where = {"begin": ints(0, 1, 0, 1), "end": ints(2, 3, 7, 6), "stride": ints(1, 1, 3, 2)}
    update = -torch.ones(2, 2, 3, 3)
    changed = run("slice_update", x=X, update=update, **where)
    torch.testing.assert_close(run("slice_by_index", x=changed, **where), update)
    assert int((changed != X).sum()) == update.numel()


def test_one_hot_puts_its_values_along_the_axis_asked_for():
    got = run("one_hot", indices=ints(2, 0), one_hot_vector_size=np.int32(3), axis=np.int32(0), on_value=np.float32(5))
    assert got.tolist() == [[0, 5], [0, 0], [5, 0]]
