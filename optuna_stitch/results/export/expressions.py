"""One operator of a traced network as a Python expression."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from optuna_stitch.errors import ExportError

_SYMBOLS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}
# Where slices of everything end.
_END = sys.maxsize
# Operators that return their input outside of training, as their last argument says.
_DROPOUTS = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.alpha_dropout.default,
    torch.ops.aten.feature_alpha_dropout.default,
)


def passes_on(node: fx.Node) -> fx.Node | None:
    """The value that a node only passes on: dropout when not training, a slice of everything."""
    dropout = node.target in _DROPOUTS and node.args[2] is False
    everything = node.target is torch.ops.aten.slice.Tensor and node.args[2:] == (0, _END)
    if not dropout and not everything:
        return None
    value = node.args[0]
    return value if isinstance(value, fx.Node) else None


def is_size(node: fx.Node) -> bool:
    """Whether a node's value is a number, as sizes are, and no tensor."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int))


def expression(node: fx.Node, name: Callable[[fx.Node], str], device: str) -> str:
    """The expression that computes a node.

    Args:
        node: A call of an operator.
        name: Says what the value of another node is called.
        device: An expression for the device that tensors are made on.

    Raises:
        ExportError: If the operator is not torch's own.
    """
    target = node.target

    def text(value: Any) -> str:
        return _literal(value, name, device)

    arguments = [text(value) for value in node.args]
    arguments += [f"{key}={text(value)}" for key, value in node.kwargs.items()]
    if target is torch.ops.aten.sym_size.int:
        return f"{arguments[0]}.shape[{arguments[1]}]"
    if target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if target is operator.neg:
        return f"-{arguments[0]}"
    if target in _SYMBOLS:
        return f" {_SYMBOLS[target]} ".join(arguments)
    return f"{_function(node)}({', '.join(arguments)})"


def _function(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        packet = target.overloadpacket
        name = f"aten.{packet.__name__}"
        alternatives = [other for other in packet.overloads() if "out" not in other]
        return name if alternatives == ["default"] else f"{name}.{target._overloadname}"
    name = getattr(target, "__name__", str(target))
    if getattr(torch, name, None) is target:  # torch.sym_max and its like
        return f"torch.{name}"
    raise ExportError(
        f"The network uses the operator {target}, which is not torch's own, so that it cannot be "
        "written as Python code. Export it as `program`."
    )


def _literal(value: Any, name: Callable[[fx.Node], str], device: str) -> str:
    if isinstance(value, fx.Node):
        return name(value)
    if isinstance(value, (list, tuple)):
        parts = [_literal(part, name, device) for part in value]
        return f"[{', '.join(parts)}]"
    if isinstance(value, torch.device):
        return device
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    # dtypes, layouts and memory formats print as what they are in code
    return repr(value)
