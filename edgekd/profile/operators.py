"""The names of operators in each target's own vocabulary: what profiles' fallbacks may name, and ATen's word for them.

Pure text: files are read by these tables (`edgekd.latency`), profiles are checked by them, and what a runtime refuses
or moves is looked up in them (`edgekd.targets.legality`). The *_REST operators have no place in a network's cost.
Behind a name ` (dilated)` may stand: that operator, only where its window has gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Literal

from edgekd.errors import did_you_mean

Vocabulary = Literal["aten", "onnx", "tflite", "mil", "openvino"]
DILATED = " (dilated)"

_ONNX = """Relu relu|LeakyRelu leaky_relu|PRelu prelu|Clip clamp|Add add|Sub sub|Mul mul|Neg neg|Abs abs|Where where
Min minimum|Max maximum|Equal eq|Less lt|Greater gt|Not logical_not|And logical_and|Or logical_or|Sign sign
Floor floor|Round round|Ceil ceil|Mod fmod|HardSwish hardswish|HardSigmoid hardsigmoid|Sigmoid sigmoid|Swish silu
Gelu gelu|FastGelu gelu|QuickGelu silu|Tanh tanh|Elu elu|Selu selu|Mish mish|Softplus softplus|Softsign softsign
Erf erf|Div div|Reciprocal reciprocal|Pow pow|Sqrt sqrt|Exp exp|Log log|Sin sin|Cos cos
BatchNormalization batch_norm|LayerNormalization layer_norm|GroupNormalization group_norm
InstanceNormalization instance_norm|RMSNormalization rms_norm|SkipLayerNormalization layer_norm
LRN local_response_norm|Softmax softmax|LogSoftmax log_softmax|ReduceMean mean|ReduceSum sum|ReduceMax amax
ReduceMin amin|ReduceL2 norm|GlobalAveragePool mean|GlobalMaxPool amax|ArgMax argmax|CumSum cumsum|TopK topk
AveragePool avg_pool2d|MaxPool max_pool2d|Transpose permute|Concat cat|Pad constant_pad_nd|Gather gather
GatherElements gather|GatherND gather|ScatterND scatter|ScatterElements scatter|Tile repeat
Resize upsample_bilinear2d|Upsample upsample_nearest2d|DepthToSpace pixel_shuffle|SpaceToDepth pixel_unshuffle
Cast _to_copy|Einsum matmul|OneHot one_hot|Trilu tril|GridSample grid_sampler_2d|Reshape view|Flatten view
Squeeze view|Unsqueeze view|Identity view|Expand view|Slice slice|Split split|Dropout view|QuantizeLinear view
DequantizeLinear view|Conv convolution|FusedConv convolution|ConvTranspose convolution|QLinearConv convolution
ConvInteger convolution|Gemm addmm|MatMul matmul|FusedMatMul matmul|QLinearMatMul matmul|MatMulInteger matmul
QLinearAdd add|QLinearMul mul|QLinearGlobalAveragePool mean|QLinearConcat cat|QLinearSigmoid sigmoid|QGemm addmm
Constant free|ConstantOfShape free|Shape free|Range free|Size free|EyeLike free"""
_ONNX_REST = """
Acos Acosh AffineGrid ArgMin Asin Asinh Atan Atanh Attention Bernoulli BitCast BitShift BitwiseAnd BitwiseNot
BitwiseOr BitwiseXor BlackmanWindow CastLike CausalConvWithState Celu CenterCropPad Col2Im Compress ConcatFromSequence
Cosh CumProd DFT DeformConv Det DynamicQuantizeLinear GRU GlobalLpPool GreaterOrEqual HammingWindow HannWindow Hardmax
If ImageDecoder IsInf IsNaN LSTM LessOrEqual LinearAttention Loop LpNormalization LpPool MaxRoiPool MaxUnpool Mean
MeanVarianceNormalization MelWeightMatrix Multinomial NegativeLogLikelihoodLoss NonMaxSuppression NonZero Optional
OptionalGetElement OptionalHasElement RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike ReduceL1
ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare RegexFullMatch ReverseSequence RoiAlign RotaryEmbedding STFT
Scan Scatter SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap Shrink
Sinh SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit Sum SwiGLU Tan TensorScatter
TfIdfVectorizer ThresholdedRelu Unique Xor"""

_TFLITE = """ADD add|SUB sub|MUL mul|NEG neg|ABS abs|MAXIMUM maximum|MINIMUM minimum|SQUARE square|SELECT where
SELECT_V2 where|RELU relu|RELU6 relu6|RELU_N1_TO_1 hardtanh|RELU_0_TO_1 hardtanh|LEAKY_RELU leaky_relu|PRELU prelu
FLOOR floor|ROUND round|CEIL ceil|SQUARED_DIFFERENCE sub|EQUAL eq|NOT_EQUAL ne|LESS lt|LESS_EQUAL le|GREATER gt
GREATER_EQUAL ge|LOGICAL_AND logical_and|LOGICAL_OR logical_or|LOGICAL_NOT logical_not|SIGN sign
FLOOR_DIV floor_divide|FLOOR_MOD remainder|HARD_SWISH hardswish|LOGISTIC sigmoid|TANH tanh|ELU elu|GELU gelu
DIV div|POW pow|SQRT sqrt|RSQRT rsqrt|EXP exp|LOG log|SIN sin|COS cos|ATAN2 atan2|L2_NORMALIZATION rms_norm
LOCAL_RESPONSE_NORMALIZATION local_response_norm|SOFTMAX softmax|LOG_SOFTMAX log_softmax|MEAN mean|SUM sum
REDUCE_MAX amax|REDUCE_MIN amin|REDUCE_PROD prod|REDUCE_ANY any|REDUCE_ALL all|ARG_MAX argmax|ARG_MIN argmin
CUMSUM cumsum|TOPK_V2 topk|AVERAGE_POOL_2D avg_pool2d|MAX_POOL_2D max_pool2d|L2_POOL_2D avg_pool2d
TRANSPOSE permute|CONCATENATION cat|PACK stack|PAD constant_pad_nd|PADV2 constant_pad_nd
MIRROR_PAD reflection_pad2d|GATHER gather|GATHER_ND gather|SCATTER_ND scatter|TILE repeat|BROADCAST_TO repeat
RESIZE_BILINEAR upsample_bilinear2d|RESIZE_NEAREST_NEIGHBOR upsample_nearest2d|DEPTH_TO_SPACE pixel_shuffle
SPACE_TO_DEPTH pixel_unshuffle|SPACE_TO_BATCH_ND pixel_unshuffle|BATCH_TO_SPACE_ND pixel_shuffle|CAST _to_copy
REVERSE_V2 flip|ONE_HOT one_hot|EMBEDDING_LOOKUP embedding|DYNAMIC_UPDATE_SLICE slice_scatter|RESHAPE view
SQUEEZE view|EXPAND_DIMS view|SLICE view|STRIDED_SLICE view|SPLIT view|SPLIT_V view|UNPACK view|QUANTIZE view
DEQUANTIZE view|CONV_2D convolution|DEPTHWISE_CONV_2D convolution|TRANSPOSE_CONV convolution|FULLY_CONNECTED mm
BATCH_MATMUL bmm|SHAPE free|FILL free|RANGE free|ZEROS_LIKE free|RANK free"""
_TFLITE_REST = """
ADD_N ASSIGN_VARIABLE BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN BITCAST BITWISE_XOR BROADCAST_ARGS
BUCKETIZE CALL CALL_ONCE COMPLEX_ABS CONCAT_EMBEDDINGS CONV_3D CONV_3D_TRANSPOSE CUSTOM DELEGATE DENSIFY DILATE
EMBEDDING_LOOKUP_SPARSE FAKE_QUANT HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP HASHTABLE_SIZE IF IMAG
LSH_PROJECTION LSTM MATRIX_DIAG MATRIX_SET_DIAG MULTINOMIAL NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5
RANDOM_STANDARD_NORMAL RANDOM_UNIFORM READ_VARIABLE REAL REDUCE_WINDOW REVERSE_SEQUENCE RFFT2D RIGHT_SHIFT RNN
SEGMENT_SUM SKIP_GRAM SPARSE_TO_DENSE STABLEHLO_ABS STABLEHLO_ADD STABLEHLO_AND STABLEHLO_BROADCAST_IN_DIM
STABLEHLO_CASE STABLEHLO_CBRT STABLEHLO_CLAMP STABLEHLO_COMPARE STABLEHLO_COMPOSITE STABLEHLO_CONCATENATE
STABLEHLO_CONVERT STABLEHLO_CONVOLUTION STABLEHLO_COSINE STABLEHLO_CUSTOM_CALL STABLEHLO_DIVIDE STABLEHLO_DOT_GENERAL
STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_GATHER
STABLEHLO_IOTA STABLEHLO_LOG STABLEHLO_LOGISTIC STABLEHLO_MAXIMUM STABLEHLO_MINIMUM STABLEHLO_MULTIPLY
STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_PAD STABLEHLO_POWER STABLEHLO_REDUCE STABLEHLO_REDUCE_WINDOW
STABLEHLO_REMAINDER STABLEHLO_RESHAPE STABLEHLO_RNG_BIT_GENERATOR STABLEHLO_RSQRT STABLEHLO_SCATTER STABLEHLO_SELECT
STABLEHLO_SHIFT_LEFT STABLEHLO_SLICE STABLEHLO_SORT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_TRANSPOSE
STABLEHLO_WHILE SVDF UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN UNIQUE UNSORTED_SEGMENT_MAX
UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHERE WHILE"""

_MIL = """abs abs|add add|avg_pool avg_pool2d|batch_norm batch_norm|cast _to_copy|ceil ceil|clamped_relu clamp
clip clamp|concat cat|conv convolution|conv_transpose convolution|cos cos|cumsum cumsum|depth_to_space pixel_shuffle
einsum matmul|elu elu|equal eq|erf erf|exp exp|expand_dims view|fill full|floor floor|floor_div floor_divide
gather index_select|gather_along_axis gather|gather_nd gather|gelu gelu|greater gt|greater_equal ge|gru gru
identity view|instance_norm instance_norm|l2_norm rms_norm|layer_norm layer_norm|leaky_relu leaky_relu|less lt
less_equal le|linear addmm|local_response_norm local_response_norm|log log|logical_and logical_and
logical_not logical_not|logical_or logical_or|lstm lstm|matmul matmul|max_pool max_pool2d|maximum maximum
minimum minimum|mod remainder|mul mul|not_equal ne|one_hot one_hot|pad constant_pad_nd|pixel_shuffle pixel_shuffle
pixel_unshuffle pixel_unshuffle|pow pow|prelu prelu|real_div div|reduce_argmax argmax|reduce_argmin argmin
reduce_l2_norm norm|reduce_max amax|reduce_mean mean|reduce_min amin|reduce_prod prod|reduce_sum sum|relu relu
relu6 relu6|resample grid_sampler_2d|reshape view|resize upsample_bilinear2d|reverse flip|round round|rsqrt rsqrt
scaled_dot_product_attention scaled_dot_product_attention|scatter scatter|select where|sigmoid sigmoid
sigmoid_hard hardsigmoid|sign sign|silu silu|sin sin|slice_by_index slice|slice_by_size slice|softmax softmax
softplus softplus|softsign softsign|space_to_depth pixel_unshuffle|split split|sqrt sqrt|square square|squeeze view
stack stack|sub sub|tanh tanh|tile repeat|topk topk|transpose permute|upsample_bilinear upsample_bilinear2d
upsample_nearest_neighbor upsample_nearest2d"""
_MIL_REST = """
_const_symbolic acos affine argsort asin atan atanh band_part batch_to_space classify cond const
constexpr_affine_dequantize constexpr_blockwise_shift_scale constexpr_cast constexpr_lut_to_dense
constexpr_lut_to_sparse constexpr_sparse_blockwise_shift_scale constexpr_sparse_to_dense conv_quantized cosh crop
crop_resize custom_layer dequantize exp2 fill_like flatten2d inverse l2_pool linear_activation list_gather list_length
list_read list_scatter list_write logical_xor make_list non_maximum_suppression non_zero quantize random_bernoulli
random_categorical random_normal random_uniform range_1d read_state reduce_l1_norm reduce_log_sum reduce_log_sum_exp
reduce_sum_square reshape_like resize_bilinear resize_nearest_neighbor reverse_sequence rnn scaled_tanh
scatter_along_axis scatter_nd shape sinh slice_update sliding_windows softplus_parametric space_to_batch tan threshold
thresholded_relu while_loop"""

_OPENVINO = """Abs abs|AdaptiveAvgPool adaptive_avg_pool2d|Add add|AvgPool avg_pool2d|BatchNormInference batch_norm
Broadcast repeat|Ceiling ceil|Clamp clamp|Concat cat|Convert _to_copy|Convolution convolution
ConvolutionBackpropData convolution|Cos cos|CumSum cumsum|DepthToSpace pixel_shuffle|Divide div|Einsum matmul
Elu elu|Equal eq|Erf erf|Exp exp|FakeQuantize view|Floor floor|FloorMod remainder|GRUSequence gru
Gather index_select|GatherElements gather|GatherND gather|Gelu gelu|Greater gt|GreaterEqual ge
GridSample grid_sampler_2d|GroupConvolution convolution|GroupConvolutionBackpropData convolution
GroupNormalization group_norm|HSigmoid hardsigmoid|HSwish hardswish|HardSigmoid hardsigmoid
Interpolate upsample_bilinear2d|LRN local_response_norm|LSTMSequence lstm|Less lt|LessEqual le|Log log
LogSoftmax log_softmax|LogicalAnd logical_and|LogicalNot logical_not|LogicalOr logical_or|MVN layer_norm
MatMul matmul|MaxPool max_pool2d|Maximum maximum|Minimum minimum|Mish mish|Mod fmod|Multiply mul|Negative neg
NormalizeL2 norm|NotEqual ne|OneHot one_hot|PRelu prelu|Pad constant_pad_nd|Power pow|ReduceL2 norm|ReduceMax amax
ReduceMean mean|ReduceMin amin|ReduceProd prod|ReduceSum sum|Relu relu|Reshape view|Roll roll|Round round
ScaledDotProductAttention scaled_dot_product_attention|ScatterElementsUpdate scatter|Select where|Selu selu
Sigmoid sigmoid|Sign sign|Sin sin|Slice slice|SoftPlus softplus|SoftSign softsign|Softmax softmax
SpaceToDepth pixel_unshuffle|Split split|Sqrt sqrt|SquaredDifference sub|Squeeze view|StridedSlice slice
Subtract sub|Swish silu|Tanh tanh|Tile repeat|TopK topk|Transpose permute|Unsqueeze view|VariadicSplit split"""
_OPENVINO_REST = """
Acos Acosh AdaptiveMaxPool Asin Asinh Assign Atan Atanh BatchToSpace BinaryConvolution BitwiseAnd BitwiseLeftShift
BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Bucketize CTCGreedyDecoder CTCGreedyDecoderSeqLen CTCLoss Col2Im
ConvertLike ConvertPromoteTypes Cosh DFT DeformableConvolution DeformablePSROIPooling DetectionOutput
EmbeddingBagOffsets EmbeddingBagOffsetsSum EmbeddingBagPacked EmbeddingBagPackedSum EmbeddingSegmentsSum
ExtractImagePatches Eye FakeConvert GRN GRUCell GatherTree GenerateProposals I420toBGR I420toRGB IDFT IRDFT ISTFT
Identity Inverse IsFinite IsInf IsNaN LSTMCell LogicalXor MatrixNms MulticlassNms Multinomial NMSRotated NV12toBGR
NV12toRGB NonMaxSuppression NonZero PSROIPooling PriorBox PriorBoxClustered Proposal RDFT RNNCell RNNSequence ROIAlign
ROIAlignRotated ROIPooling RandomUniform Range ReadValue ReduceL1 ReduceLogicalAnd ReduceLogicalOr RegionYolo
ReorgYolo Result ReverseSequence STFT ScatterNDUpdate ScatterUpdate SearchSorted SegmentMax ShapeOf ShuffleChannels
Sinh SliceScatter SpaceToBatch SparseFillEmptyRows StringTensorPack StringTensorUnpack Tan Unique"""

_TEXTS = {
    "onnx": (_ONNX, _ONNX_REST),
    "tflite": (_TFLITE, _TFLITE_REST),
    "mil": (_MIL, _MIL_REST),
    "openvino": (_OPENVINO, _OPENVINO_REST),
}
_OF_TARGET: dict[str, Vocabulary] = {
    "tflite": "tflite",
    "coreml": "mil",
    "openvino": "openvino",
    "onnxruntime": "onnx",
    "tensorrt": "onnx",
}
_TITLES = {"onnx": "ONNX", "tflite": "TFLite", "mil": "Core ML (MIL)", "openvino": "OpenVINO", "aten": "ATen"}


def vocabulary_of(target: str) -> Vocabulary:
    """Whose names a target's fallbacks are written in; ATen's for a third party's target, which are not checked.

    >>> vocabulary_of("tensorrt"), vocabulary_of("coreml")
    ('onnx', 'mil')
    """
    return _OF_TARGET.get(target, "aten")


@cache
def aten_names(vocabulary: Vocabulary) -> Mapping[str, str]:
    """Operator -> ATen's name of what it does, for those that a network's cost knows; nothing for ATen itself.

    >>> aten_names("tflite")["HARD_SWISH"], aten_names("onnx")["Gelu"]
    ('hardswish', 'gelu')
    """
    text = _TEXTS[vocabulary][0] if vocabulary in _TEXTS else ""
    pairs = (pair.split() for line in text.splitlines() for pair in line.split("|"))
    return MappingProxyType({name: kind for name, kind in pairs})


def is_operator(name: str, target: str) -> bool:
    """Whether a fallback of the target may name it.

    >>> is_operator("Conv (dilated)", "tensorrt"), is_operator("HardSwich", "tensorrt")
    (True, False)
    """
    vocabulary = vocabulary_of(target)
    return vocabulary == "aten" or name.removesuffix(DILATED) in _every(vocabulary)


def unknown_operator(name: str, target: str) -> str:
    """What to say of a name that is no operator: the nearest ones, in one line.

    >>> unknown_operator("Hardswish", "tensorrt")
    "unknown op 'Hardswish' of tensorrt (ONNX's names); did you mean 'HardSwish'?"
    """
    vocabulary = vocabulary_of(target)
    advice = did_you_mean(name, _every(vocabulary))
    if not advice.startswith("did you mean"):
        folded = {known.casefold(): known for known in sorted(_every(vocabulary))}
        advice = did_you_mean(name.casefold(), folded)
        advice = f"did you mean '{folded[advice.split(chr(39))[1]]}'?" if advice.startswith("did you mean") else ""
    what = f"unknown op '{name}' of {target} ({_TITLES[vocabulary]}'s names)"
    return f"{what}; {advice}" if advice else what


@cache
def _every(vocabulary: Vocabulary) -> frozenset[str]:
    return frozenset([*aten_names(vocabulary), *_TEXTS[vocabulary][1].split()])
