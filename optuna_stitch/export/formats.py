"""The formats of an exported network: how each is written, and how it is loaded again."""

from __future__ import annotations

import importlib.util
import io
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from optuna_stitch.export.early_exit import BothHeads, Gathered, Single, whole_program
from optuna_stitch.export.source import CODE, WEIGHTS, write_code
from optuna_stitch.export.trace import Traced, quiet
from optuna_stitch.utils.errors import ExportError, first_line
from optuna_stitch.utils.text import listed_text

PROGRAM = "network.pt2"

ONNX = "network.onnx"

# Of a cascade, for one image: it stops where the first answer is enough.
SINGLE = "network.single.onnx"

# A protocol buffer ends at 2 GiB; the graph itself needs some of it.
_LARGEST = 2**31 - 2**26

_ALL = "all"

# What ONNX calls the answer to one question.
_LOGITS = "logits"


# Logits, or those of two questions by name.
Answer = Tensor | dict[str, Tensor]


def _nothing(folder: Path) -> None:
    """No file for one image only."""


@dataclass(frozen=True)
class Format:
    """One way to keep a network.

    Args:
        files: Names of the files that it may consist of.
        write: Takes a traced subnetwork and a folder, and writes the files.
        load: Takes a folder, and returns a function from images to logits; of a network that
            answers two questions, to a dictionary of them.
        load_single: Likewise what takes one image only, where there is a file for that.
        tolerance: By how much its logits may differ from the extracted module's.
        packages: What it needs besides our own dependencies; the format's name is the extra that
            installs them.
        needs: Says in the card which files it is, and what they need to be loaded.
        usage: Code that computes ``logits`` from ``images``, a list with one tensor per input.
        usage_both: Code that computes ``answers``, logits by name, of two questions.
        cascades: Says in the card what it makes of a cascade.
        tags: What the Hugging Face Hub is told of it.
    """

    files: tuple[str, ...]
    write: Callable[[Traced, Path], None]
    load: Callable[[Path], Callable[..., Answer]]
    load_single: Callable[[Path], Callable[..., Answer] | None] = _nothing
    tolerance: float = 0.0
    packages: tuple[str, ...] = ()
    needs: str = ""
    usage: str = ""
    usage_both: str = ""
    cascades: str = ""
    tags: tuple[str, ...] = ()


def select_formats(names: Sequence[str]) -> list[str]:
    """Look up the formats that are asked for.

    Args:
        names: Their names; ``all`` stands for all of them.

    Returns:
        The names of `FORMATS`, each once.

    Raises:
        ExportError: If a format is unknown, or needs a package that is missing.
    """
    known = f"there are {', '.join(FORMATS)} and {_ALL}."
    for name in names:
        if name not in (_ALL, *FORMATS):
            raise ExportError(f"There is no format {name!r}; {known}")
    selected = [name for name in FORMATS if name in names or _ALL in names]
    if not selected:
        raise ExportError(f"No format is asked for; {known}")
    for name in selected:
        packages = FORMATS[name].packages
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            others = [other for other, form in FORMATS.items() if not form.packages]
            raise ExportError(
                f"The format {name} needs {', '.join(missing)}: pip install "
                f"'optuna-stitch[{name}]'. Or choose another format, {listed_text(others, 'or')}."
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


def write_onnx(traced: Traced, folder: Path, *, largest: int = _LARGEST) -> None:
    """Write ``network.onnx``, with a free batch size; of a cascade ``network.single.onnx`` too.

    Args:
        traced: The subnetwork.
        folder: Where to write.
        largest: Bytes of weights that a file itself may hold; more of them lie beside it, in
            ``network.onnx.data``.

    Raises:
        ExportError: If an operator has no counterpart in ONNX.
    """
    batch: Any = ({0: "batch"},) * len(traced.views)
    names = list(traced.stages[0].answers) or [_LOGITS]
    _write_onnx(whole_program(traced, BothHeads), batch, folder / ONNX, largest, names)
    if traced.subnetwork.is_cascade:
        single = whole_program(traced, Single, free=False)
        _write_onnx(single, None, folder / SINGLE, largest, names)


def _write_onnx(
    program: torch.export.ExportedProgram,
    shapes: Any,
    path: Path,
    largest: int,
    names: Sequence[str],
) -> None:
    with quiet():
        try:
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=shapes,
                output_names=names,
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # its own kinds, and whatever its passes raise
            raise ExportError(
                f"The network cannot be converted to ONNX ({first_line(error)}). Choose another "
                "format, python or program."
            ) from error
        # what is folded in a branch leaves numbers that nothing reads, which runtimes warn of
        kept = written.model.graph.initializers
        for name in [name for name, value in kept.items() if not value.uses()]:
            del kept[name]
        weights = (*program.state_dict.values(), *program.constants.values())
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        written.save(path, external_data=size > largest)


def load_onnx(folder: Path) -> Callable[..., Answer]:
    """Load what `write_onnx` wrote for a batch, for onnxruntime on the CPU.

    Args:
        folder: Where it is.
    """
    return _load_onnx(folder / ONNX)


def load_single_onnx(folder: Path) -> Callable[..., Answer] | None:
    """Load what `write_onnx` wrote for one image; None where there is no such file.

    Args:
        folder: Where it is.
    """
    return _load_onnx(folder / SINGLE) if (folder / SINGLE).exists() else None


def _load_onnx(path: Path) -> Callable[..., Answer]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    answers = [output.name for output in session.get_outputs()]

    def run(*images: Tensor) -> Answer:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        logits = [torch.from_numpy(value) for value in session.run(None, given)]
        return dict(zip(answers, logits, strict=True)) if answers != [_LOGITS] else logits[0]

    return run


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

session = onnxruntime.InferenceSession("network.onnx")
names = [argument.name for argument in session.get_inputs()]
given = {name: pixels.numpy() for name, pixels in zip(names, images)}
logits = torch.from_numpy(session.run(None, given)[0])"""

_USE_ONNX_BOTH = (
    "logits = torch.from_numpy(session.run(None, given)[0])",
    'answers = dict(zip("ab", map(torch.from_numpy, session.run(["a", "b"], given))))',
)

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
    "onnx": Format(
        files=(ONNX, f"{ONNX}.data", SINGLE, f"{SINGLE}.data"),
        write=write_onnx,
        load=load_onnx,
        load_single=load_single_onnx,
        tolerance=1e-4,
        packages=("onnx", "onnxscript", "onnxruntime"),
        needs=f"`{ONNX}`, which needs onnxruntime",
        usage=_USE_ONNX,
        usage_both=_USE_ONNX.replace(*_USE_ONNX_BOTH),
        cascades=f"`{ONNX}` computes both heads for every image of a batch, and saves nothing. "
        f"`{SINGLE}` takes one image, and stops where the first answer is enough; it is loaded "
        "likewise",
        tags=("onnx",),
    ),
}
