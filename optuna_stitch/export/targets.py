"""Formats for a certain runtime: in 16 and 8 bits, for OpenVINO, TensorRT and Core ML."""

from __future__ import annotations

import io
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_stitch.export.early_exit import BothHeads, Single, whole_program
from optuna_stitch.export.onnx_file import (
    LOGITS,
    Answer,
    named_answer,
    one_by_one,
    onnx_model,
    save_model,
)
from optuna_stitch.export.trace import Traced
from optuna_stitch.utils.errors import ExportError, first_line
from optuna_stitch.utils.onnx import quiet

FLOAT16, FLOAT16_SINGLE = "network.float16.onnx", "network.float16.single.onnx"

INT8, INT8_SINGLE = "network.int8.onnx", "network.int8.single.onnx"

OPENVINO = ("network.xml", "network.bin")

TENSORRT = "network.tensorrt.onnx"

COREML = "network.mlpackage"

# Images of the train split by which int8 chooses its ranges.
CALIBRATION = 128

# Images at once, while ranges are chosen.
_BATCH = 16

# What int8 computes; all else stays in float32, such as softmax and norms, which lose by it.
_QUANTIZED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
)

# What has weights, behind which only the arithmetic of answers comes.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "If")

# Operators that the ONNX parser of TensorRT 10.15 takes, by its own table.
_TENSORRT = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape
Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum
Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish
Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow PRelu QuantizeLinear RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
Resize ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile
TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""

_OPSETS = range(9, 25)


def write_float16(traced: Traced, folder: Path) -> None:
    """Write ``network.float16.onnx``, whose inputs and outputs stay in float32.

    Args:
        traced: The subnetwork.
        folder: Where to write.

    Raises:
        ExportError: If an operator has no counterpart in ONNX, or cannot be in 16 bits.
    """
    save_model(_halved(onnx_model(traced)), folder / FLOAT16)
    if traced.subnetwork.is_cascade:
        save_model(_halved(onnx_model(traced, Single, free=False)), folder / FLOAT16_SINGLE)


def _halved(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet(), _calm():
        try:
            return convert_float_to_float16(
                model, keep_io_types=True, disable_shape_infer=model.ByteSize() > 2**30
            )
        except Exception as error:  # of a converter, which knows no kinds
            raise ExportError(
                f"The network cannot be converted to float16 ({first_line(error)}). Choose "
                "another format, onnx or onnx-int8."
            ) from error


def write_int8(traced: Traced, folder: Path) -> None:
    """Write ``network.int8.onnx``, whose ranges are chosen on calibration images.

    Of a cascade ``network.int8.single.onnx`` too, in which the first stage is in 8 bits.

    Args:
        traced: The subnetwork, with calibration images.
        folder: Where to write.

    Raises:
        ExportError: If the network cannot be converted.
    """
    _quantize(onnx_model(traced), traced.calibration, folder / INT8, _BATCH)
    if traced.subnetwork.is_cascade:
        single = onnx_model(traced, Single, free=False)
        _quantize(single, traced.calibration, folder / INT8_SINGLE, 1)


def _quantize(model: Any, images: Sequence[Tensor], path: Path, batch: int) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [given.name for given in model.graph.input]
    batch = min(batch, len(images[0]))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Calibration images, a few at once."""

        def __init__(self) -> None:
            self.starts = iter(range(0, len(images[0]) - batch + 1, batch))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self.starts, None)
            if start is None:
                return None
            some = (pixels[start : start + batch].numpy() for pixels in images)
            return dict(zip(names, some, strict=True))

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8-") as work, _calm():
        plain, prepared = Path(work) / "plain.onnx", Path(work) / "prepared.onnx"
        save_model(model, plain)
        try:
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_exclude=_last_nodes(prepared),
                per_channel=True,
                # with weights in 7 bits the sums of processors without VNNI do not overflow
                activation_type=quantization.QuantType.QUInt8,
                reduce_range=True,
            )
        except OSError:  # a disk is full
            raise
        except Exception as error:  # of a converter, which knows no kinds
            raise ExportError(
                f"The network cannot be converted to int8 ({first_line(error)}). Choose another "
                "format, onnx or onnx-float16."
            ) from error


def _last_nodes(path: Path) -> list[str]:
    """Names of nodes behind which nothing has weights: the arithmetic of answers."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    before_weights: set[str] = set()  # values that something with weights depends on
    last = []
    for node in reversed(graph.node):
        if node.op_type in _WEIGHTED or before_weights.intersection(node.output):
            before_weights.update(node.input)
        if node.op_type not in _WEIGHTED and not before_weights.intersection(node.output):
            last.append(node.name)
    return last


def write_openvino(traced: Traced, folder: Path) -> None:
    """Write ``network.xml`` and ``network.bin``, with a free batch size.

    Args:
        traced: The subnetwork.
        folder: Where to write.

    Raises:
        ExportError: If OpenVINO lacks an operator.
    """
    import openvino

    with tempfile.TemporaryDirectory(dir=folder, prefix=".openvino-") as work, _calm():
        path = Path(work) / "network.onnx"
        save_model(onnx_model(traced), path)
        model = openvino_model(path)
        try:
            openvino.save_model(model, folder / OPENVINO[0], compress_to_fp16=False)
        except RuntimeError as error:  # of a disk that is full, among others
            raise OSError(first_line(error)) from error


def openvino_model(path: Path) -> Any:
    """Convert an ONNX file to OpenVINO's model.

    Args:
        path: The file.

    Returns:
        An ``openvino.Model``.

    Raises:
        ExportError: If OpenVINO lacks an operator, or cannot convert one.
    """
    import onnx
    import openvino

    try:
        return openvino.convert_model(path)
    except Exception as error:  # its kinds have no common base
        nodes = onnx.load(path, load_external_data=False).graph.node
        raise ExportError(
            f"OpenVINO cannot take the network: {_lacking_openvino(str(error), nodes)}. Choose "
            "another format, such as onnx."
        ) from error


def _lacking_openvino(told: str, nodes: Iterable[Any]) -> str:
    """What OpenVINO lacks, without where in its own code it noticed.

    Args:
        told: Its message. It ends in a summary such as "No conversion rule found for operations:
            Det-18, mine.Twice", or "Conversion is failed for: Gelu-20" after the reason.
        nodes: Of the graph.
    """
    lacking = {
        name
        for line in re.findall("operations: (.*)", told)
        for name in re.findall(r"[\w.]+", line)
    }
    found = [
        f"it has no operator {name}, of the node {node.name}"
        for node in nodes
        if (name := _operator(node)) in lacking
    ]
    if found:
        return "; ".join(found[:3])
    details, _, summary = told.partition("Summary:")
    said = [line for line in details.splitlines() if line and not line.startswith("Check ")]
    reason = (said[-1] if said else told).rstrip(".")
    failed = re.search(r"failed for: ([\w.]+)", summary)
    return f"it cannot convert the operator {failed[1]} ({reason})" if failed else reason


def _operator(node: Any) -> str:
    """The name of a node's operator, with its domain where that is not ONNX's own."""
    return node.op_type if _is_standard(node) else f"{node.domain}.{node.op_type}"


def _is_standard(node: Any) -> bool:
    return node.domain in ("", "ai.onnx")


def load_openvino(folder: Path) -> Callable[..., Answer]:
    """Load what `write_openvino` wrote, for the CPU, with as many threads as torch has.

    Args:
        folder: Where it is.
    """
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    network = openvino.Core().compile_model(folder / OPENVINO[0], "CPU", options)
    names = [given.get_any_name() for given in network.inputs]
    answers = [output.get_any_name() for output in network.outputs]

    def run(*images: Tensor) -> Answer:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        found = network(given)
        return named_answer(answers, [found[place].copy() for place in range(len(answers))])

    return run


def write_tensorrt(traced: Traced, folder: Path) -> None:
    """Write ``network.tensorrt.onnx``: for one image, of operators that TensorRT's parser takes.

    Every shape is fixed, nothing is in double precision, and every operator is in the table of
    TensorRT's ONNX parser. TensorRT itself, which needs a GPU, is not asked.

    Args:
        traced: The subnetwork.
        folder: Where to write.

    Raises:
        ExportError: If an operator or a shape is not for TensorRT; names the node.
    """
    model = _single_precision(onnx_model(traced, BothHeads, free=False))
    check_tensorrt(model)
    save_model(model, folder / TENSORRT)


def _single_precision(model: Any) -> Any:
    """The same without numbers in double precision, which TensorRT does not compute in."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    for weights in model.graph.initializer:
        if weights.data_type == double:
            values = numpy_helper.to_array(weights).astype(np.float32)
            weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == double:
                attribute.i = single
            elif attribute.HasField("t") and attribute.t.data_type == double:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
    del model.graph.value_info[:]  # they say what was in double precision
    return model


def check_tensorrt(model: Any) -> None:
    """Raise where the ONNX parser of TensorRT would not take a model.

    Args:
        model: The ``onnx.ModelProto``.

    Raises:
        ExportError: Names the operator and the node.
    """
    import onnx

    def refuse(node: Any, why: str) -> None:
        raise ExportError(
            f"TensorRT cannot take this network: {why}, of the node {node.name}. Choose another "
            "format, such as onnx."
        )

    known = _TENSORRT.split()
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if opset not in _OPSETS:
        raise ExportError(
            f"TensorRT takes opsets {_OPSETS[0]} to {_OPSETS[-1]} of ONNX; this network is in "
            f"{opset}. Choose another format, such as onnx."
        )
    for node in model.graph.node:
        said = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if not _is_standard(node) or node.op_type not in known:
            refuse(node, f"its parser has no operator {_operator(node)}")
        if node.op_type == "Resize" and (said.get("mode") == b"cubic" or said.get("antialias")):
            refuse(node, "it resizes neither by cubic interpolation nor with antialiasing")
        if node.op_type == "MaxPool" and (
            len(node.output) > 1 or set(said.get("dilations", [])) - {1}
        ):
            refuse(node, "its MaxPool gives no indices and has no dilations")
    shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        value.name: value.type.tensor_type
        for value in (*shaped.graph.value_info, *shaped.graph.output)
    }
    for node in shaped.graph.node:
        for name in filter(None, node.output):
            kind = shapes.get(name)
            dims = kind.shape.dim if kind is not None and kind.HasField("shape") else None
            if dims is None or not all(dim.HasField("dim_value") for dim in dims):
                refuse(node, f"the shape of {name} is not fixed")


def write_coreml(traced: Traced, folder: Path) -> None:
    """Write ``network.mlpackage``, for one image, in float32.

    Args:
        traced: The subnetwork.
        folder: Where to write.

    Raises:
        ExportError: If the converter lacks an operator, or is another version than torch is for.
    """
    with quiet(), _calm():
        import coremltools

        # double precision is none of Core ML's
        program = whole_program(traced, BothHeads, free=False)
        try:
            program = program.run_decompositions({torch.ops.aten.logaddexp.default: _logaddexp})
            model = coremltools.convert(
                program,
                convert_to="mlprogram",
                compute_precision=coremltools.precision.FLOAT32,
                minimum_deployment_target=coremltools.target.iOS16,
                outputs=[
                    coremltools.TensorType(name=name)
                    for name in list(traced.stages[0].answers) or [LOGITS]
                ],
            )
        except Exception as error:  # of a converter, which knows no kinds
            if "FileWriter" in str(error):  # it has a copy of the weights written meanwhile
                raise OSError(first_line(error)) from error
            raise ExportError(
                f"coremltools {coremltools.__version__} cannot convert the network "
                f"({first_line(error)}). Choose another format, such as onnx."
            ) from error
        model.save(str(folder / COREML))


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """The logarithm of a sum of exponentials, by operators that Core ML has."""
    return torch.maximum(a, b) + torch.log(1 + torch.exp(-(a - b).abs()))


def load_coreml(folder: Path) -> Callable[..., Answer]:
    """Load what `write_coreml` wrote.

    Args:
        folder: Where it is.
    """
    import coremltools

    network = coremltools.models.MLModel(str(folder / COREML))
    description = network.get_spec().description
    names = [given.name for given in description.input]
    answers = [output.name for output in description.output]

    def run(*images: Tensor) -> Answer:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        found = network.predict(given)
        return named_answer(answers, [found[name] for name in answers])

    return one_by_one(run)


def lacks_coreml() -> str:
    """Why Core ML cannot run here; nothing, where it can."""
    return "" if sys.platform == "darwin" else "Core ML runs on macOS and iOS only"


@contextmanager
def _calm() -> Iterator[None]:
    """Keep converters from writing to the root logger, and from showing progress."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
