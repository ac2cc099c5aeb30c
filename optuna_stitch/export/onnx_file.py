"""Networks as ONNX: how they are written, and run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_stitch.export.early_exit import BothHeads, CascadeGraph, Single, whole_program
from optuna_stitch.export.trace import Traced
from optuna_stitch.utils.errors import ExportError, first_line
from optuna_stitch.utils.onnx import onnx_of

ONNX = "network.onnx"

# Of a cascade, for one image: it stops where the first answer is enough.
SINGLE = "network.single.onnx"

# A protocol buffer ends at 2 GiB; the graph itself needs some of it.
LARGEST = 2**31 - 2**26

# What ONNX calls the answer to one question.
LOGITS = "logits"

# Logits, or those of two questions by name.
Answer = Tensor | dict[str, Tensor]

# What onnxruntime says of an operator that it lacks.
_LACKING = re.compile(
    r"implementation for (?P<operator>\S+?)(?:\(\d+\))? node with name '(?P<node>.*?)'"
)


def onnx_model(traced: Traced, kind: type[CascadeGraph] = BothHeads, *, free: bool = True) -> Any:
    """A network as an ONNX model, converted once for all that is made of it.

    Args:
        traced: The network.
        kind: As which graph, if it is a cascade.
        free: Whether the batch may have any size; else it is one image.

    Returns:
        A copy of it, an ``onnx.ModelProto``.

    Raises:
        ExportError: If an operator has no counterpart in ONNX.
    """
    key = f"onnx {kind.__name__} {free}"
    if key not in traced.models:
        batch: Any = ({0: "batch"},) * len(traced.views) if free else None
        names = list(traced.stages[0].answers) or [LOGITS]
        program = whole_program(traced, kind, free=free)
        try:
            traced.models[key] = onnx_of(program, names, batch)
        except Exception as error:  # its own kinds, and whatever its passes raise
            raise ExportError(
                f"The network cannot be converted to ONNX ({first_line(error)}). Choose another "
                "format, python or program."
            ) from error
    copied = type(traced.models[key])()
    copied.CopyFrom(traced.models[key])
    return copied


def save_model(model: Any, path: Path, *, largest: int = LARGEST) -> None:
    """Write an ONNX model.

    Args:
        model: The ``onnx.ModelProto``; weights that are written beside it are no longer in it.
        path: The file.
        largest: Bytes that the file itself may hold; of more, weights lie beside it, in
            ``<path>.data``.
    """
    import onnx

    if model.ByteSize() <= largest:
        path.write_bytes(model.SerializeToString())
    else:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def write_onnx(traced: Traced, folder: Path, *, largest: int = LARGEST) -> None:
    """Write ``network.onnx``, with a free batch size; of a cascade ``network.single.onnx`` too.

    Args:
        traced: The subnetwork.
        folder: Where to write.
        largest: Bytes that a file itself may hold; of more, weights lie beside it, in
            ``network.onnx.data``.

    Raises:
        ExportError: If an operator has no counterpart in ONNX.
    """
    save_model(onnx_model(traced), folder / ONNX, largest=largest)
    if traced.subnetwork.is_cascade:
        save_model(onnx_model(traced, Single, free=False), folder / SINGLE, largest=largest)


def load_onnx(path: Path) -> Callable[..., Answer]:
    """Load an ONNX file for onnxruntime on the CPU, with as many threads as torch has.

    Args:
        path: The file; one for single images is run image by image.

    Returns:
        A function from images to logits; of two questions, to a dictionary of them.

    Raises:
        ExportError: If onnxruntime lacks an operator.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its kinds have no common base
        raise ExportError(
            f"onnxruntime cannot run {path.name}: {_lacking(error)}. Choose another format."
        ) from error
    names = [argument.name for argument in session.get_inputs()]
    alone = all(argument.shape[0] == 1 for argument in session.get_inputs())
    answers = [output.name for output in session.get_outputs()]

    def run(*images: Tensor) -> Answer:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        return named_answer(answers, session.run(None, given))

    return one_by_one(run) if alone else run


def _lacking(error: Exception) -> str:
    """Which operator a runtime lacks, and the node, where it says so."""
    found = _LACKING.search(str(error))
    if found is None:
        return first_line(error)
    return f"it has no operator {found['operator']}, of the node {found['node']}"


def named_answer(names: Sequence[str], values: Sequence[Any]) -> Answer:
    """What a runtime returns as an answer.

    Args:
        names: Of its outputs.
        values: Their arrays.
    """
    logits = [torch.from_numpy(value) for value in values]
    return dict(zip(names, logits, strict=True)) if list(names) != [LOGITS] else logits[0]


def one_by_one(network: Callable[..., Answer]) -> Callable[..., Answer]:
    """Let what takes one image take several.

    Args:
        network: Takes one image.
    """

    def run(*images: Tensor) -> Answer:
        count = len(images[0])
        answers = [network(*(pixels[i : i + 1] for pixels in images)) for i in range(count)]
        if isinstance(answers[0], dict):
            return {name: torch.cat([one[name] for one in answers]) for name in answers[0]}  # type: ignore[index]
        return torch.cat(answers)  # type: ignore[arg-type]

    return run
