"""Make a graph functional: after an in-place operation, a feature is no longer the feature."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul,
}


def make_functional(captured: fx.GraphModule) -> None:
    """Replace in-place operations by those that return a new tensor.

    Whatever reads the changed tensor afterwards reads the operation's result instead.

    Args:
        captured: The graph, changed in place; modules that work in place are replaced by copies,
            since they may be the user's own.
    """
    modules = dict(captured.named_modules())
    place = {node: index for index, node in enumerate(captured.graph.nodes)}
    for node in captured.graph.nodes:
        if not _works_in_place(node, modules):
            continue
        if node.op == "call_module":
            _replace_by_copy(captured, str(node.target), modules)
        elif node.op == "call_method":
            node.target = node.target.rstrip("_")
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = _functional_overload(node.target)
        else:
            node.target = _OPERATORS[node.target]
        changed = node.args[0]
        if isinstance(changed, fx.Node) and _changes_its_input(node, modules):
            changed.replace_all_uses_with(
                node,
                delete_user_cb=lambda user, node=node: place[user] > place[node],  # type: ignore[misc]
            )
    captured.recompile()


def _works_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        parts = modules[str(node.target)].modules()
        return any(getattr(part, "inplace", False) for part in parts)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("__")
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.endswith("_") and node.target._schema.is_mutable
    return bool(node.kwargs.get("inplace")) or node.target in _OPERATORS


def _changes_its_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """A normalization with its activation inside, say, works in place on its own result only."""
    return node.op != "call_module" or bool(getattr(modules[str(node.target)], "inplace", False))


def _functional_overload(target: torch._ops.OpOverload) -> Any:
    """``aten.add.Tensor`` for ``aten.add_.Tensor``."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name[:-1])
    return getattr(packet, target._overloadname)


def _replace_by_copy(captured: fx.GraphModule, path: str, modules: dict[str, nn.Module]) -> None:
    changed = copy.deepcopy(modules[path])
    part: Any
    for part in changed.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    captured.set_submodule(path, changed)
