"""Write a traced subnetwork as an ONNX model, and run one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_stitch.export.trace import Traced, quiet
from optuna_stitch.utils.errors import ExportError, first_line

# The model, and its weights where they do not fit into it.
FILES = ("network.onnx", "network.onnx.data")

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# A protocol buffer ends at 2 GiB; the graph itself needs some of it.
_LARGEST = 2**31 - 2**26


def require_onnx() -> None:
    """Check that what ONNX needs is installed.

    Raises:
        ExportError: If it is not.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"The format onnx needs {', '.join(missing)}: pip install 'optuna-stitch[onnx]'. Or "
            "choose another format, python or program."
        )


def write_onnx(traced: Traced, folder: Path) -> None:
    """Write ``network.onnx``, with weights inside where they fit, and a free batch size.

    Raises:
        ExportError: If an operator has no counterpart in ONNX.
    """
    batch: Any = ({0: "batch"},) * len(traced.views)
    with quiet():
        try:
            model: Any = torch.onnx.export(
                traced.program,
                dynamo=True,
                dynamic_shapes=batch,
                output_names=["logits"],
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # its own kinds, and whatever its passes raise
            raise ExportError(
                f"The network cannot be converted to ONNX ({first_line(error)}). Choose another "
                "format, python or program."
            ) from error
        size = sum(
            weight.numel() * weight.element_size()
            for weight in (*traced.program.state_dict.values(), *traced.program.constants.values())
        )
        model.save(folder / FILES[0], external_data=size > _LARGEST)


def load_onnx(folder: Path) -> Callable[..., Tensor]:
    """Load a model for onnxruntime, on the CPU: a function from images to logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(
        str(folder / FILES[0]), options, providers=["CPUExecutionProvider"]
    )
    names = [argument.name for argument in session.get_inputs()]

    def run(*images: Tensor) -> Tensor:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        (logits,) = session.run(None, given)
        return torch.from_numpy(logits)

    return run
