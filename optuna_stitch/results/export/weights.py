"""The tensors that a traced subnetwork uses, by the names they have in its parents."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from optuna_stitch.errors import ExportError

_CONSTANTS = "constants"


@dataclass(frozen=True)
class Weight:
    """A tensor of a network.

    Args:
        name: Its dotted path, ``a.layer1.0.conv1.weight``.
        tensor: Its own memory, contiguous.
        trained: Whether it is a parameter.
    """

    name: str
    tensor: Tensor
    trained: bool


def weights_of(
    program: torch.export.ExportedProgram, nodes: Sequence[fx.Node]
) -> dict[fx.Node, Weight]:
    """The tensors that some of a program's nodes stand for; each is there once.

    Args:
        program: What `torch.export` made.
        nodes: Those of its nodes that are needed.

    Raises:
        ExportError: If one stands for something that is no tensor.
    """
    kept: dict[object, Weight] = {}
    found: dict[fx.Node, Weight] = {}
    held = {**program.constants, **program.state_dict}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in nodes:
        if node.op != "placeholder" or specs[node.name].kind == InputKind.USER_INPUT:
            continue
        spec = specs[node.name]
        path = str(spec.target)
        tensor = held.get(path)
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"The network holds {path}, a {type(tensor).__name__}, which a file of weights "
                "cannot. Export it as `program`."
            )
        # tied weights are one tensor under several paths
        identity = tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        if identity not in kept:
            own = tensor.detach().cpu().contiguous().clone()
            kept[identity] = Weight(_name(path), own, spec.kind == InputKind.PARAMETER)
        found[node] = kept[identity]
    return found


def buffer_names(weights: Iterable[Weight]) -> list[str]:
    """Names by which buffers are told from parameters: their last part where that is enough."""
    names = {weight.name: weight.trained for weight in weights}
    last = {name.rpartition(".")[2] for name, trained in names.items() if trained}
    buffers = [name for name, trained in names.items() if not trained]
    return sorted({_shortest(name, last) for name in buffers})


def accessor(name: str) -> str:
    """The expression that reads a weight: ``a.layer1[0].conv1.weight``."""
    first, *rest = name.split(".")
    return first + "".join(map(_access, rest))


def _access(part: str) -> str:
    if part.isdecimal() and str(int(part)) == part:
        return f"[{part}]"
    plain = part.isidentifier() and not keyword.iskeyword(part)
    return f".{part}" if plain else f"[{part!r}]"


def _name(path: str) -> str:
    """A tensor that tracing met on its way has no name in a parent."""
    first, _, rest = path.partition(".")
    return path if first in ("a", "b", "stitches") and rest else f"{_CONSTANTS}.{path}"


def _shortest(name: str, taken: set[str]) -> str:
    last = name.rpartition(".")[2]
    return name if last in taken else last
