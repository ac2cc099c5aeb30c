"""The formats of an exported network: how each is written, and how it is loaded again."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from optuna_stitch.export.early_exit import Gathered, whole_program
from optuna_stitch.export.onnx_file import ONNX, SINGLE, Answer, load_onnx, write_onnx
from optuna_stitch.export.source import CODE, WEIGHTS, write_code
from optuna_stitch.export.targets import (
    COREML,
    FLOAT16,
    FLOAT16_SINGLE,
    INT8,
    INT8_SINGLE,
    OPENVINO,
    TENSORRT,
    lacks_coreml,
    load_coreml,
    load_openvino,
    write_coreml,
    write_float16,
    write_int8,
    write_openvino,
    write_tensorrt,
)
from optuna_stitch.export.trace import Traced
from optuna_stitch.utils.errors import ExportError
from optuna_stitch.utils.onnx import quiet
from optuna_stitch.utils.text import listed_text

PROGRAM = "network.pt2"

# What answers as the network does, wherever it runs; other formats are for a certain target.
_ALL = ("python", "program", "onnx")


def _everywhere() -> str:
    """No reason why a format could not be run here."""
    return ""


@dataclass(frozen=True)
class Format:
    """One way to keep a network.

    Args:
        files: Names of the files that it may consist of, the one that is loaded first.
        write: Takes a traced subnetwork and a folder, and writes the files.
        load: Takes a folder, and returns a function from images to logits; of a network that
            answers two questions, to a dictionary of them.
        runtime: The package that runs it.
        single: Name of a cascade's file for one image, where there is one.
        load_single: Loads that.
        tolerance: By how much its logits may differ from the extracted module's; None, where only
            its answers count.
        packages: What it needs besides our own dependencies.
        extra: What installs them.
        lacks: Says why this machine cannot run it; nothing, where it can.
        needs: Says in the card which files it is, and what they need to be loaded.
        usage: Code that computes ``logits`` from ``images``, a list with one tensor per input.
        usage_both: Code that computes ``answers``, logits by name, of two questions.
        cascades: Says in the card what it makes of a cascade.
        one_image: Whether it takes one image at a time.
        tags: What the Hugging Face Hub is told of it.
    """

    files: tuple[str, ...]
    write: Callable[[Traced, Path], None]
    load: Callable[[Path], Callable[..., Answer]]
    runtime: str = "torch"
    single: str = ""
    load_single: Callable[[Path], Callable[..., Answer]] | None = None
    tolerance: float | None = 0.0
    packages: tuple[str, ...] = ()
    extra: str = ""
    lacks: Callable[[], str] = _everywhere
    needs: str = ""
    usage: str = ""
    usage_both: str = ""
    cascades: str = ""
    one_image: bool = False
    tags: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """What runs it, and its version."""
        # of the module: a package may have another name, such as onnxruntime-gpu
        said = str(importlib.import_module(self.runtime).__version__)
        return f"{self.runtime} {re.split('[-+]', said)[0]}"

    def networks(self, folder: Path) -> dict[str, Callable[..., Answer]]:
        """Load all that was written, by the name of the file.

        Args:
            folder: Where it is.
        """
        found = {self.files[0]: self.load(folder)}
        if self.load_single is not None and (folder / self.single).exists():
            found[self.single] = self.load_single(folder)
        return found

    def size(self, file: str, folder: Path) -> int:
        """Bytes of one of its files, with what lies beside it.

        Args:
            file: A name that `networks` gives.
            folder: Where it is.
        """
        names = (file, f"{file}.data") if self.single else self.files
        paths = [part for name in names for part in (folder / name, *(folder / name).rglob("*"))]
        return sum(path.stat().st_size for path in paths if path.is_file())


def select_formats(names: Sequence[str]) -> list[str]:
    """Look up the formats that are asked for.

    Args:
        names: Their names; ``all`` stands for ``python``, ``program`` and ``onnx``, which answer
            alike wherever they run.

    Returns:
        The names of `FORMATS`, each once.

    Raises:
        ExportError: If a format is unknown, or needs a package that is missing.
    """
    if isinstance(names, str):
        names = (names,)
    known = f"there are {', '.join(FORMATS)} and all ({listed_text(_ALL)})."
    for name in names:
        if name not in ("all", *FORMATS):
            raise ExportError(f"There is no format {name!r}; {known}")
    asked = {*names, *(_ALL if "all" in names else ())}
    selected = [name for name in FORMATS if name in asked]
    if not selected:
        raise ExportError(f"No format is asked for; {known}")
    for name in selected:
        packages = FORMATS[name].packages
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            others = [other for other, form in FORMATS.items() if not form.packages]
            raise ExportError(
                f"The format {name} needs {', '.join(missing)}: pip install "
                f"'optuna-stitch[{FORMATS[name].extra}]'. Or choose another format, "
                f"{listed_text(others, 'or')}."
            )
    return selected


def write_python(traced: Traced, folder: Path) -> None:
    """Write ``network.py`` and ``network.safetensors``.

    Args:
        traced: The subnetwork.
        folder: Where to write.

    Raises:
        ExportError: If the network uses an operator that is not torch's own.
    """
    text, weights = write_code(traced)
    (folder / CODE).write_text(text, encoding="utf-8")
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights))


def load_python(folder: Path) -> Callable[..., Answer]:
    """Load what `write_python` wrote.

    Args:
        folder: Where it is.
    """
    network: Callable[..., Answer] = runpy.run_path(str(folder / CODE))["load_network"]()
    return network


def write_program(traced: Traced, folder: Path) -> None:
    """Write ``network.pt2``, for ``torch.export.load``.

    Args:
        traced: The subnetwork.
        folder: Where to write.

    Raises:
        ExportError: If it is a cascade, and torch cannot trace it whole.
    """
    program = whole_program(traced, Gathered)
    held = io.BytesIO()  # torch's own writer does not say that a disk is full
    with quiet():
        torch.export.save(program, held)
    (folder / PROGRAM).write_bytes(held.getbuffer())


def load_program(folder: Path) -> Callable[..., Answer]:
    """Load what `write_program` wrote.

    Args:
        folder: Where it is.
    """
    with quiet():
        module: Any = torch.export.load(folder / PROGRAM).module()
    return module  # type: ignore[no-any-return]


_USE_PYTHON = """\
from network import load_network

network = load_network()
with torch.no_grad():
    logits = network(*images)"""

_USE_PROGRAM = """\
network = torch.export.load("network.pt2").module()
with torch.no_grad():
    logits = network(*images)"""

_USE_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
names = [argument.name for argument in session.get_inputs()]
given = {{name: pixels.numpy() for name, pixels in zip(names, images)}}
{answer}"""

_ONE = "logits = torch.from_numpy(session.run(None, given)[0])"

_BOTH = 'answers = dict(zip("ab", map(torch.from_numpy, session.run(["a", "b"], given))))'

_USE_OPENVINO = """\
import openvino

network = openvino.Core().compile_model("network.xml", "CPU")
names = [given.get_any_name() for given in network.inputs]
given = {{name: pixels.numpy() for name, pixels in zip(names, images)}}
{answer}"""

_USE_COREML = """\
import coremltools

network = coremltools.models.MLModel("network.mlpackage")
names = [given.name for given in network.get_spec().description.input]
given = {{name: pixels.numpy() for name, pixels in zip(names, images)}}
{answer}"""

# What formats of ONNX make of a cascade; those that are for one image are made by If.
_CASCADES = (
    "`{file}` computes both heads for every image of a batch, and saves nothing. `{single}` takes "
    "one image, and stops where the first answer is enough; it is loaded likewise"
)


def _onnx(file: str, single: str = "", **fields: Any) -> Format:
    """A format that onnxruntime runs.

    Args:
        file: Its name.
        single: Name of a cascade's file for one image.
        **fields: Of the format.
    """
    names = [name for name in (file, single) if name]
    given: dict[str, Any] = {
        "files": tuple(part for name in names for part in (name, f"{name}.data")),
        "load": lambda folder: load_onnx(folder / file),
        "runtime": "onnxruntime",
        "single": single,
        "load_single": (lambda folder: load_onnx(folder / single)) if single else None,
        "tolerance": 1e-4,
        "packages": ("onnx", "onnxscript", "onnxruntime"),
        "extra": "onnx",
        "needs": f"`{file}`, which needs onnxruntime",
        "usage": _USE_ONNX.format(file=file, answer=_ONE),
        "usage_both": _USE_ONNX.format(file=file, answer=_BOTH),
        "cascades": _CASCADES.format(file=file, single=single),
        "tags": ("onnx",),
    }
    return Format(**{**given, **fields})


FORMATS: dict[str, Format] = {
    "python": Format(
        files=(CODE, WEIGHTS),
        write=write_python,
        load=load_python,
        needs=f"`{CODE}` and `{WEIGHTS}`, which need torch and safetensors",
        usage=_USE_PYTHON,
        usage_both=_USE_PYTHON.replace("logits", "answers"),
        cascades="Of a batch only the images that go on are computed further; "
        "`network.went_on` says how many these were",
        tags=("safetensors",),
    ),
    "program": Format(
        files=(PROGRAM,),
        write=write_program,
        load=load_program,
        needs=f"`{PROGRAM}`, which needs torch",
        usage=_USE_PROGRAM,
        usage_both=_USE_PROGRAM.replace("logits", "answers"),
        cascades="Of a batch only the images that go on are computed further",
    ),
    "onnx": _onnx(ONNX, SINGLE, write=write_onnx),
    "onnx-float16": _onnx(
        FLOAT16,
        FLOAT16_SINGLE,
        write=write_float16,
        tolerance=None,
        needs=f"`{FLOAT16}`, in 16 bits but for its inputs and outputs, which needs onnxruntime",
    ),
    "onnx-int8": _onnx(
        INT8,
        INT8_SINGLE,
        write=write_int8,
        tolerance=None,
        needs=f"`{INT8}`, in 8 bits but for its inputs and outputs, which needs onnxruntime",
        cascades=f"{_CASCADES.format(file=INT8, single=INT8_SINGLE)}. In that file, what is "
        "computed of unsure images only stays in 32 bits",
    ),
    "openvino": Format(
        files=OPENVINO,
        write=write_openvino,
        load=load_openvino,
        runtime="openvino",
        tolerance=None,
        packages=("onnx", "onnxscript", "openvino"),
        extra="openvino",
        needs=f"`{OPENVINO[0]}` and `{OPENVINO[1]}`, which need openvino",
        usage=_USE_OPENVINO.format(answer="logits = torch.from_numpy(network(given)[0])"),
        usage_both=_USE_OPENVINO.format(
            answer="found = network(given)\n"
            'answers = {side: torch.from_numpy(found[side]) for side in "ab"}'
        ),
        cascades="It computes both heads for every image, and saves nothing",
        tags=("openvino",),
    ),
    "tensorrt": _onnx(
        TENSORRT,
        write=write_tensorrt,
        needs=f"`{TENSORRT}`, for one image, which TensorRT makes an engine of "
        f"(`trtexec --onnx={TENSORRT}`). All shapes are fixed, and all operators are in the table "
        "of TensorRT 10.15's parser; it was run by onnxruntime, not by TensorRT",
        cascades="It computes both heads for every image, and saves nothing",
        one_image=True,
        tags=("onnx", "tensorrt"),
    ),
    "coreml": Format(
        files=(COREML,),
        write=write_coreml,
        load=load_coreml,
        runtime="coremltools",
        tolerance=None,
        packages=("coremltools",),
        extra="coreml",
        lacks=lacks_coreml,
        needs=f"`{COREML}`, for one image, which needs macOS or iOS, and here coremltools",
        usage=_USE_COREML.format(
            answer='logits = torch.from_numpy(network.predict(given)["logits"])'
        ),
        usage_both=_USE_COREML.format(
            answer="found = network.predict(given)\n"
            'answers = {side: torch.from_numpy(found[side]) for side in "ab"}'
        ),
        cascades="It computes both heads for every image, and saves nothing",
        one_image=True,
        tags=("coreml",),
    ),
}
