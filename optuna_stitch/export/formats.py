"""The formats of an exported network: how each is written, and how it is loaded again."""

from __future__ import annotations

import io
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from optuna_stitch.export import onnx
from optuna_stitch.export.source import CODE, WEIGHTS, write_code
from optuna_stitch.export.trace import Traced, quiet
from optuna_stitch.stitching.genotype import Switch
from optuna_stitch.utils.errors import ExportError

PROGRAM = "network.pt2"

_ALL = "all"


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Args:
        traced: The network.
        switches: The supernetwork's.
        title: What the network is, in one line.
        answer: What it returns, with its shape.
    """

    traced: Traced
    switches: Sequence[Switch]
    title: str
    answer: str


@dataclass(frozen=True)
class Format:
    """One way to keep a network.

    Args:
        files: Names of the files that it may consist of.
        write: Writes them into a folder.
        load: Brings a network back from a folder: a function from images to logits.
        tolerance: By how much its logits may differ from the extracted module's.
    """

    files: tuple[str, ...]
    write: Callable[[Subject, Path], None]
    load: Callable[[Path], Callable[..., Tensor]]
    tolerance: float = 0.0


def chosen(names: Sequence[str]) -> list[str]:
    """The formats that are asked for, each once; ``all`` stands for all of them.

    Raises:
        ExportError: If one is unknown, or needs a package that is missing.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in (_ALL, *FORMATS):
            raise ExportError(
                f"There is no format {name!r}; there are {', '.join(FORMATS)} and {_ALL}."
            )
        found.update(dict.fromkeys(FORMATS if name == _ALL else [name]))
    if not found:
        raise ExportError(f"No format is asked for; there are {', '.join(FORMATS)} and {_ALL}.")
    if "onnx" in found:
        onnx.require_onnx()
    return [name for name in FORMATS if name in found]


def _write_python(subject: Subject, folder: Path) -> None:
    text, weights = write_code(
        subject.traced, subject.switches, title=subject.title, answer=subject.answer
    )
    (folder / CODE).write_text(text, encoding="utf-8")
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights))


def _load_python(folder: Path) -> Callable[..., Tensor]:
    network: Callable[..., Tensor] = runpy.run_path(str(folder / CODE))["load_network"]()
    return network


def _write_program(subject: Subject, folder: Path) -> None:
    held = io.BytesIO()  # torch's own writer does not say that a disk is full
    with quiet():
        torch.export.save(subject.traced.program, held)
    (folder / PROGRAM).write_bytes(held.getbuffer())


def _load_program(folder: Path) -> Callable[..., Tensor]:
    with quiet():
        module: Any = torch.export.load(folder / PROGRAM).module()
    return module  # type: ignore[no-any-return]


def _write_onnx(subject: Subject, folder: Path) -> None:
    onnx.write_onnx(subject.traced, folder)


FORMATS: dict[str, Format] = {
    "python": Format((CODE, WEIGHTS), _write_python, _load_python),
    "program": Format((PROGRAM,), _write_program, _load_program),
    "onnx": Format(onnx.FILES, _write_onnx, onnx.load_onnx, tolerance=1e-4),
}
