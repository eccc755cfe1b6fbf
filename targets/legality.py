"""Which operators of a network a runtime refuses or moves to another unit, with the profile's reason.

A profile names operators in its runtime's own words, and what counts is what edgekd's exporters write: at opset 13 a
hard swish becomes HardSigmoid and Mul, so a parser without HardSwish never sees one. The tables were read off exported
files; `tests/export/test_legality.py` exports anew what depends on opset, precision and runtime, and compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import Literal

from edgekd.artifact import Frozen, Precision
from edgekd.profile import RuntimeSupport
from edgekd.profile.operators import DILATED, Vocabulary, aten_names, vocabulary_of
from edgekd.targets import onnxruntime, tensorrt
from edgekd.targets.tensorrt import LAYER_NORM_OPSET

GELU_OPSET, HARDSWISH_OPSET, MISH_OPSET = 20, 14, 18  # ONNX: where one operator does it
# Two exporters write ONNX, torch's TorchScript one below this opset.
PROGRAM_EXPORTER_OPSET = 18

# ATen's several names of one thing.
_SAME = {
    "matmul": "bmm baddbmm", "addmm": "linear addmv", "softmax": "_softmax _safe_softmax",
    "log_softmax": "_log_softmax", "layer_norm": "native_layer_norm", "group_norm": "native_group_norm",
    "rms_norm": "_fused_rms_norm", "permute": "transpose t movedim", "max_pool2d": "max_pool2d_with_indices",
    "clamp": "clamp_min clamp_max", "avg_pool2d": "_adaptive_avg_pool2d", "slice": "narrow",
    "split": "chunk unbind split_with_sizes",
    "view": "_unsafe_view reshape flatten squeeze unsqueeze", "where": "masked_fill", "norm": "linalg_vector_norm",
    "prelu": "_prelu_kernel", "index_select": "index embedding",
    "batch_norm": "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm _native_batch_norm_legit",
    "scaled_dot_product_attention": """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention""",
}  # fmt: skip
_CANONICAL = {alias: kind for kind, aliases in _SAME.items() for alias in aliases.split()}

# Where a file has another operator than the first that the vocabulary lists for a kind: kind, then what is written.
_TEXTS: dict[Vocabulary, str] = {
    "onnx": """depthwise_convolution Conv|transposed_convolution ConvTranspose|mm MatMul|silu Sigmoid Mul
        relu6 Clip|hardtanh Clip|clone|view Reshape Flatten Squeeze Unsqueeze|slice Slice|split Slice Split
        select Gather|stack Concat Unsqueeze|roll Concat Slice|flip Slice|upsample_nearest2d Resize
        upsample_bicubic2d Resize|pixel_shuffle DepthToSpace
        group_norm Reshape InstanceNormalization Mul Add|scaled_dot_product_attention MatMul Mul Softmax""",
    "tflite": """depthwise_convolution DEPTHWISE_CONV_2D|transposed_convolution TRANSPOSE_CONV
        addmm FULLY_CONNECTED|adaptive_avg_pool2d MEAN|hardtanh RELU6|hardsigmoid ADD MUL|silu LOGISTIC MUL|clone
        view RESHAPE|slice SLICE STRIDED_SLICE|select SLICE STRIDED_SLICE|split SLICE|roll CONCATENATION SLICE
        mish ADD EXP GREATER LOG MUL SELECT TANH|softplus ADD EXP GREATER LOG SELECT
        layer_norm MEAN SQUARED_DIFFERENCE RSQRT MUL ADD SUB|group_norm MEAN RSQRT MUL ADD SUB RESHAPE
        instance_norm MEAN RSQRT MUL ADD SUB RESHAPE|batch_norm MUL ADD|prelu RELU MUL SUB
        elu EXP GREATER_EQUAL SELECT SUB|selu EXP GREATER_EQUAL SELECT SUB MUL
        pixel_shuffle RESHAPE TRANSPOSE|upsample_bicubic2d GATHER_ND MUL ADD
        grid_sampler_2d GATHER_ND MUL ADD|scaled_dot_product_attention BATCH_MATMUL MUL SOFTMAX""",
    "mil": """depthwise_convolution conv|transposed_convolution conv_transpose|adaptive_avg_pool2d reduce_mean
        hardtanh relu6 clip|hardswish mul sigmoid_hard thresholded_relu|mish mul softplus tanh|clone
        view reshape expand_dims squeeze|slice slice_by_index|select slice_by_index
        split slice_by_index split|roll gather|flip reverse|selu elu mul|prelu prelu leaky_relu
        group_norm reshape reduce_mean sub square sqrt real_div mul add|mm linear|norm reduce_l2_norm
        scaled_dot_product_attention matmul mul softmax""",
    "openvino": """depthwise_convolution GroupConvolution|transposed_convolution ConvolutionBackpropData|mm MatMul
        addmm MatMul Add|adaptive_avg_pool2d AdaptiveAvgPool ReduceMean|hardtanh Clamp|relu6 Clamp|clone
        view Reshape Squeeze Unsqueeze|slice Slice StridedSlice|select Gather|flip Slice""",
}
_WRITTEN: dict[Vocabulary, dict[str, str]] = {
    vocabulary: dict(
        (pair.strip().partition(" ")[0], pair.strip().partition(" ")[2]) for pair in text.replace("\n", "|").split("|")
    )
    for vocabulary, text in _TEXTS.items()
}


class Misfit(Frozen):
    """An operator that a runtime refuses, or that leaves its unit for another (`to`), and why that is known.

    operator: in the runtime's words; kinds: what it is in the network, in ATen's words (a file's own, for a file).
    """

    operator: str
    kinds: tuple[str, ...]
    to: Literal["cpu", "gpu", "npu", "refused"]
    why: str

    @property
    def refused(self) -> bool:
        """Whether a network with it does not run at all."""
        return self.to == "refused"


def misfits(
    operators: Collection[str], runtime: RuntimeSupport, precision: Precision, *, vocabulary: Vocabulary = "aten"
) -> tuple[Misfit, ...]:
    """What a runtime does not run on its unit, of a network's operators (`GraphCost.operators`, in `vocabulary`).

    >>> from edgekd.profile import load_profile
    >>> dla = load_profile("jetson-orin-nx").runtime("tensorrt", "npu")
    >>> [(found.operator, found.to) for found in misfits(["convolution", "hardsigmoid"], dla, "fp16")]
    [('HardSigmoid', 'gpu')]
    """
    if not runtime.fallbacks:
        return ()
    names = {op: _in_file(op, runtime, precision, vocabulary) for op in sorted(operators)}
    found = []
    for fallback in runtime.fallbacks:
        for operator in fallback.ops:
            kinds = tuple(op for op, written in names.items() if operator in written)
            if kinds:
                found.append(Misfit(operator=operator, kinds=kinds, to=fallback.to, why=fallback.why))
    return tuple(found)


def explain(misfit: Misfit, runtime: RuntimeSupport) -> str:
    """One clause for people.

    >>> from edgekd.profile import load_profile
    >>> dla = load_profile("jetson-orin-nx").runtime("tensorrt", "npu")
    >>> explain(Misfit(operator="Div", kinds=("div",), to="gpu", why="seen"), dla)
    'Div leaves the npu for the gpu in tensorrt 10.3 (seen)'
    """
    of = [kind for kind in misfit.kinds if kind.casefold() != misfit.operator.casefold()]
    name = f"{misfit.operator} (of {', '.join(of)})" if of else misfit.operator
    where = f"{runtime.target} {runtime.version}"
    if misfit.refused:
        return f"{name} is refused by {where} on the {runtime.unit} ({misfit.why})"
    return f"{name} leaves the {runtime.unit} for the {misfit.to} in {where} ({misfit.why})"


def _in_file(operator: str, runtime: RuntimeSupport, precision: Precision, vocabulary: Vocabulary) -> frozenset[str]:
    """The names under which the runtime meets it."""
    if vocabulary == vocabulary_of(runtime.target):
        return _as_parsed({operator}, runtime)
    kind = operator.removesuffix(DILATED)
    if vocabulary != "aten":
        kind = aten_names(vocabulary).get(kind, "")
    found = _as_parsed(written(kind, runtime, precision), runtime)
    return found | {name + DILATED for name in found} if operator.endswith(DILATED) else found


def _as_parsed(names: Iterable[str], runtime: RuntimeSupport) -> frozenset[str]:
    """TensorRT has no layer for a hard swish: it is run as ONNX defines it, by a hard sigmoid."""
    found = frozenset(names)
    return found | {"HardSigmoid"} if runtime.target == "tensorrt" and "HardSwish" in found else found


def written(kind: str, runtime: RuntimeSupport, precision: Precision) -> frozenset[str]:
    """What edgekd's exporter writes for one of ATen's operators in a file for a runtime, in the runtime's words.

    >>> from edgekd.profile import load_profile
    >>> sorted(written("hardswish", load_profile("jetson-nano").primary, "fp16"))
    ['HardSigmoid', 'Mul']
    """
    vocabulary = vocabulary_of(runtime.target)
    if vocabulary == "aten":
        return frozenset({kind})
    kind = _CANONICAL.get(kind, kind)
    special = _special(kind, vocabulary, runtime, precision)
    text = special if special is not None else _WRITTEN[vocabulary].get(kind)
    return frozenset(text.split()) if text is not None else _first_listed(vocabulary).get(kind, frozenset())


def _special(kind: str, vocabulary: Vocabulary, runtime: RuntimeSupport, precision: Precision) -> str | None:
    """What depends on the precision or the opset."""
    if vocabulary == "tflite" and kind == "hardswish" and precision == "int8":
        return "ADD MUL"  # split, and the gate as a sum: edgekd.quant.gates
    return _onnx(kind, runtime, precision) if vocabulary == "onnx" else None


def _onnx(kind: str, runtime: RuntimeSupport, precision: Precision) -> str | None:
    of_tensorrt = runtime.target == "tensorrt"
    opset = tensorrt.opset_for(runtime, layer_norm=kind == "layer_norm")
    if not of_tensorrt:
        opset = onnxruntime.opset_for(runtime)
    int8 = precision == "int8"
    gate = "HardSigmoid" if of_tensorrt or not int8 else ""  # on its int8 grid ONNX Runtime's is a change of scale
    pooled = "ReduceMean GlobalAveragePool" if int8 and not of_tensorrt else None
    one_operator = opset >= PROGRAM_EXPORTER_OPSET
    return {
        "hardsigmoid": gate,
        "hardswish": f"{gate} Mul" if int8 or opset < HARDSWISH_OPSET else "HardSwish",
        "gelu": _gelu(opset, of_tensorrt=of_tensorrt, int8=int8),
        "mish": None if opset >= MISH_OPSET else "Softplus Tanh Mul",
        "layer_norm": None if opset >= LAYER_NORM_OPSET else "ReduceMean Sub Pow Add Sqrt Div Mul",
        "mean": pooled,
        "adaptive_avg_pool2d": pooled or ("ReduceMean" if one_operator else "GlobalAveragePool"),
    }.get(kind)


def _gelu(opset: int, *, of_tensorrt: bool, int8: bool) -> str | None:
    """ONNX Runtime gets its own operator in int8, else what it fuses itself; newer opsets' Gelu only TensorRT."""
    if of_tensorrt:
        return None if opset >= GELU_OPSET else "Div Erf Add Mul"
    return None if int8 else "Div Erf Add Mul"


@cache
def _first_listed(vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for name, kind in aten_names(vocabulary).items():
        found.setdefault(_CANONICAL.get(kind, kind), frozenset({name}))
    return found
