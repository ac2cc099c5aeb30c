"""Capture a network as one functional ``torch.fx`` graph.

Tracing keeps timm's own leaf functions and modules whole, so that the graph stays at the level at
which people read a network: ``layer1.0.conv1``, not forty operators.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from optuna_stitch.errors import CaptureError

_FUNCTIONAL = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul,
}


def capture(module: nn.Module, name: str) -> fx.GraphModule:
    """Trace a network, in eval mode and without side effects.

    The graph shares its parameters with ``module``. Nodes know the module that made them
    (``meta["module"]``) and the modules whose output they are (``meta["output_of"]``, outermost
    first).

    Args:
        module: The network. Its forward takes one batch of images; other arguments keep their
            defaults.
        name: What to call it in errors.

    Returns:
        A graph with one placeholder.

    Raises:
        CaptureError: If the network cannot be traced.
    """
    module.eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(module, concrete_args=_defaults(module.forward))
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CaptureError(
            f"{name} cannot be captured as a graph: {type(error).__name__}: {reason}. "
            "Choose another architecture, or a variant of it without control flow on its inputs."
        ) from error
    for path, node in tracer.outputs:
        node.meta.setdefault("output_of", []).insert(0, path)
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["module"] = next(reversed(stack), "")
    captured = fx.GraphModule(module, graph)
    _make_functional(captured)
    captured.recompile()
    captured.eval().requires_grad_(False)
    return captured


class _Tracer(fx.Tracer):
    """A tracer that stops at timm's leaves and remembers what every module returned."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._leaves = tuple(get_notrace_modules())
        self.outputs: list[tuple[str, fx.Node]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs.append((self.path_of_module(m), output.node))
        return output


def _defaults(forward: Callable[..., Any]) -> dict[str, Any]:
    """Fix every argument but the first at its default, so that the images stay the one input."""
    arguments = list(inspect.signature(forward).parameters.values())
    return {
        argument.name: argument.default
        for argument in arguments[1:]
        if argument.default is not inspect.Parameter.empty
    }


def drop_checks(captured: fx.GraphModule) -> None:
    """Erase assertions about shapes, the placeholders of fixed arguments, and what only they use.

    To be done when the network was seen to take its images.
    """
    graph = captured.graph
    for node in reversed(list(graph.nodes)):
        fixed = node.op == "placeholder" and node is not next(iter(graph.nodes))
        check = node.op == "call_function" and "assert" in getattr(node.target, "__name__", "")
        if (fixed or check) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    captured.recompile()


def _make_functional(captured: fx.GraphModule) -> None:
    """Replace in-place operations: a feature read after one would not be the feature.

    Whatever reads the changed tensor afterwards reads the operation's result instead.
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
        else:
            node.target = _FUNCTIONAL[node.target]
        changed = node.args[0]
        if isinstance(changed, fx.Node):
            changed.replace_all_uses_with(
                node,
                delete_user_cb=lambda user, node=node: place[user] > place[node],  # type: ignore[misc]
            )


def _works_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        parts = modules[str(node.target)].modules()
        return any(getattr(part, "inplace", False) for part in parts)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("__")
    return bool(node.kwargs.get("inplace")) or node.target in _FUNCTIONAL


def _replace_by_copy(captured: fx.GraphModule, path: str, modules: dict[str, nn.Module]) -> None:
    """Put a copy that does not work in place where a module is: it may be the user's own."""
    changed = copy.deepcopy(modules[path])
    part: Any
    for part in changed.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    captured.set_submodule(path, changed)
