"""What each operator does to time, in ATen's names: the one table that recorder, fusion and file readers share.

free: known at build time, or moves nothing. alias: hands its operand on (also quantise and dequantise, which runtimes
fold into the kernels around them). cheap, costly: pointwise, without and with an exponential, root or quotient.
An operator that is missing here can be counted (its elements move) but not predicted.
"""

from __future__ import annotations

from typing import Literal

_Compute = Literal["contraction", "convolution", "cheap", "costly", "batch_norm", "norm", "softmax", "reduce", "pool"]
Role = Literal[_Compute, "copy", "free", "alias", "unknown"]

_TABLE: dict[Role, str] = {
    "convolution": "convolution _convolution convolution_overrideable",
    "contraction": """mm bmm addmm baddbmm addbmm linear matmul addmv mv dot mkldnn_rnn_layer lstm gru
        _scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention _scaled_dot_product_attention_math
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention""",
    "batch_norm": """native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training batch_norm
        _batch_norm_no_update _native_batch_norm_legit""",
    "cheap": """relu relu6 hardtanh leaky_relu clamp clamp_min clamp_max prelu _prelu_kernel threshold add sub rsub mul
        neg abs where minimum maximum square eq ne lt gt le ge logical_not logical_and logical_or masked_fill addcmul
        sign bitwise_not bitwise_and bitwise_or floor round ceil fmod remainder floor_divide fill""",
    "costly": """hardswish hardsigmoid sigmoid silu gelu tanh elu selu celu mish softplus softsign log_sigmoid
        log_sigmoid_forward erf div reciprocal pow sqrt rsqrt exp expm1 log log1p sin cos atan2 cosh sinh""",
    "norm": """native_layer_norm layer_norm native_group_norm group_norm _fused_rms_norm rms_norm instance_norm
        local_response_norm""",
    "softmax": "_softmax softmax _safe_softmax _log_softmax log_softmax",
    "reduce": """mean sum amax amin max min var var_mean std norm linalg_vector_norm argmax argmin prod any all cumsum
        logsumexp topk sort""",
    "pool": """max_pool2d max_pool2d_with_indices adaptive_max_pool2d avg_pool2d _adaptive_avg_pool2d
        adaptive_avg_pool2d max_pool1d avg_pool1d max_pool3d avg_pool3d max_pool3d_with_indices""",
    "copy": """clone copy _to_copy contiguous cat stack roll constant_pad_nd reflection_pad2d replication_pad2d index
        index_select gather scatter slice_scatter select_scatter index_put repeat repeat_interleave flip im2col col2im
        unfold upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle grid_sampler_2d transpose permute tril triu
        one_hot embedding narrow_copy split_copy masked_select nonzero""",
    "free": """empty empty_like zeros zeros_like ones ones_like full full_like new_empty new_zeros new_ones new_full
        arange scalar_tensor empty_strided linspace sym_size _assert_async _local_scalar_dense _assert_tensor_metadata
        eye rand randn bernoulli""",
    "alias": """detach dropout native_dropout alias lift_fresh lift_fresh_copy as_strided view reshape squeeze unsqueeze
        flatten expand slice select split identity quantize_per_tensor dequantize_per_tensor quantize_per_channel
        dequantize_per_channel fake_quantize_per_tensor_affine fake_quantize_per_channel_affine choose_qparams""",
}  # fmt: skip

ROLES: dict[str, Role] = {op: role for role, ops in _TABLE.items() for op in ops.split()}
# Not ATen's names: what files call apart from other convolutions.
DEPTHWISE, TRANSPOSED = "depthwise_convolution", "transposed_convolution"
POINTWISE = frozenset({"cheap", "costly", "batch_norm"})


def role_of(op: str) -> Role:
    """What an operator does, or `unknown`.

    >>> role_of("gelu"), role_of("stft")
    ('costly', 'unknown')
    """
    return ROLES.get(op, "unknown")
