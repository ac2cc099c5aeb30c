"""Turn programs of torch into ONNX, and let torch's exporters be silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_LOGGERS = ("torch.export", "torch.onnx", "onnxscript", "onnx_ir", "torch.fx")


def onnx_of(
    program: torch.export.ExportedProgram, names: Sequence[str], shapes: Any = None
) -> Any:
    """Convert a program.

    Args:
        program: The program.
        names: Of its outputs.
        shapes: Which dimensions of its inputs are free, as ``torch.onnx.export`` takes them.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        Exception: Of any kind, where an operator has no counterpart.
    """
    with quiet():
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=shapes,
            output_names=names,
            optimize=True,
            verbose=False,
        )
        # what is folded in a branch leaves numbers that nothing reads, which runtimes warn of
        kept = written.model.graph.initializers
        for name in [name for name, value in kept.items() if not value.uses()]:
            del kept[name]
        return written.model_proto


@contextmanager
def quiet() -> Iterator[None]:
    """Show neither warnings nor log messages; errors are raised as ever."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
