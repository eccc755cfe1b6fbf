"""int8 weights in a float ONNX graph: matrix products whose activations are quantised on the fly.

Convolutions stay float: ONNX Runtime has no fast kernel for them with dynamic activations (`ConvInteger`), and weights
stored in int8 behind a DequantizeLinear are widened again at every inference (0.3x the speed, mobilenet_v3_small).
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import onnx

from edgekd.export.request import RefusedError

PRODUCTS = ("MatMul", "Gemm")
LEAST_SHARE = 0.5


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with int8 weights in its matrix products, one scale per output channel.

    Raises: RefusedError: most of the weights are in convolutions, so that nothing would be won.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if (share := products_share(model)) < LEAST_SHARE:
        what = f"ONNX Runtime has int8 weights for matrix products only, {share:.0%} of this model's"
        raise RefusedError(what, fix="use int8 or fp16")
    del model.graph.value_info[:]  # the tool transposes weights and trips over shapes that were written down
    with tempfile.TemporaryDirectory(prefix="edgekd-onnx-") as folder:
        source, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_dynamic(
            source, made, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=list(PRODUCTS)
        )
        return onnx.load(made)


def products_share(model: onnx.ModelProto) -> float:
    """Part of the stored values that matrix products read as weights."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    read = {name for node in model.graph.node if node.op_type in PRODUCTS for name in node.input if name in sizes}
    total = sum(sizes.values())
    return sum(sizes[name] for name in read) / total if total else 0.0
