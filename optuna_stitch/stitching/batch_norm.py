"""BatchNorm nodes of a captured network, and how to give one other statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

# Where functions take the mean and the variance, by what a graph calls.
_FUNCTIONS: dict[Any, tuple[int, int]] = {
    torch.ops.aten.batch_norm.default: (3, 4),
    F.batch_norm: (1, 2),
}

_EPS = 7  # where both take it


class BatchNorm:
    """A node that normalizes by fixed statistics.

    Args:
        node: The node.
        mean: ``(C,)``.
        variance: ``(C,)``.
        eps: What is added to the variance.
        module: The module it calls, where it does not call a function.
    """

    def __init__(
        self, node: fx.Node, mean: Tensor, variance: Tensor, eps: float, module: nn.Module | None
    ) -> None:
        self.mean = mean
        self.variance = variance
        self.eps = eps
        self._node = node
        self._module = module

    @staticmethod
    def of(owner: nn.Module, node: fx.Node) -> BatchNorm | None:
        """What a node normalizes by; None if it is no BatchNorm with fixed statistics.

        Args:
            owner: The graph module that the node belongs to.
            node: Any node.
        """
        if node.op == "call_module":
            module = owner.get_submodule(str(node.target))
            if not isinstance(module, _BatchNorm):
                return None
            mean, variance = module.running_mean, module.running_var
            if mean is None or variance is None:
                return None
            return BatchNorm(node, mean, variance, module.eps, module)
        if node.op == "call_function" and node.target in _FUNCTIONS and len(node.args) > _EPS:
            arguments: tuple[Any, ...] = node.args
            held = [arguments[place] for place in _FUNCTIONS[node.target]]
            if all(isinstance(read, fx.Node) and read.op == "get_attr" for read in held):
                mean, variance = (_tensor(owner, str(read.target)) for read in held)
                return BatchNorm(node, mean, variance, float(arguments[_EPS]), None)
        return None

    @property
    def normalizer(self) -> nn.Module | None:
        """The module that a node calls; None where it calls a function."""
        return self._module

    def run(self, mean: Tensor, variance: Tensor) -> Callable[..., Any]:
        """The node's function with other statistics, of the same inputs.

        Args:
            mean: ``(C,)``.
            variance: ``(C,)``.
        """
        if self._module is not None:
            return self.module(mean, variance)
        order = {read: place for place, read in enumerate(self._node.all_input_nodes)}
        one, other = _FUNCTIONS[self._node.target]

        def normalize(*inputs: Any) -> Any:
            args = [inputs[order[a]] if isinstance(a, fx.Node) else a for a in self._node.args]
            args[one], args[other] = mean, variance
            return self._node.target(*args)  # type: ignore[operator]

        return normalize

    def module(self, mean: Tensor, variance: Tensor) -> nn.Module:
        """What holds other statistics: the module with these, or a holder for a function's.

        Args:
            mean: ``(C,)``.
            variance: ``(C,)``.
        """
        if self._module is None:
            holder = nn.Module()
            holder.register_buffer("running_mean", mean)
            holder.register_buffer("running_var", variance)
            return holder
        twin = copy.copy(self._module)  # shares its parameters
        twin._buffers = {**twin._buffers, "running_mean": mean, "running_var": variance}
        return twin

    def place(self, graph: fx.Graph, path: str, values: list[fx.Node]) -> fx.Node:
        """Add the node to another graph, reading its statistics from ``path``.

        Args:
            graph: Where to.
            path: Where that graph's owner has what `module` returned.
            values: The nodes that stand for the node's inputs.
        """
        if self._module is not None:
            return graph.call_module(path, tuple(values))
        value_of = dict(zip(self._node.all_input_nodes, values, strict=True))
        args = list(fx.node.map_arg(self._node.args, lambda read: value_of[read]))
        one, other = _FUNCTIONS[self._node.target]
        args[one] = graph.get_attr(f"{path}.running_mean")
        args[other] = graph.get_attr(f"{path}.running_var")
        target: Any = self._node.target
        return graph.call_function(target, tuple(args))


def _tensor(owner: Any, path: str) -> Tensor:
    for part in path.split("."):
        owner = getattr(owner, part)
    found: Tensor = owner
    return found
