"""One step of a supernetwork's computation, and how a parent's node becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from optuna_stitch.stitching.normalization import BatchNorm


@dataclass(frozen=True)
class Operation:
    """One step of the computation.

    Args:
        name: ``a.<node>`` or ``b.<node>``, ``input.<view>``, ``stitch.<index>``, ``ensemble``.
        run: Computes the value from the values of ``inputs`` (an input's own, from the images).
        inputs: Operations it reads, in the order that ``run`` takes them.
        macs: Multiply-accumulates per image.
        elements: Numbers per image that the value consists of.
        node: The parent's node, where it is one.
        owner: ``a``, ``b``, ``input``, ``stitch`` or ``ensemble``.
        number: Index of the view or of the stitch, where it is one.
        weights: The parameters it uses.
        norm: What it normalizes by, where it is a BatchNorm.
    """

    name: str
    run: Callable[..., Any]
    inputs: tuple[int, ...]
    macs: int
    elements: int
    owner: str
    node: fx.Node | None = None
    number: int = 0
    weights: tuple[nn.Parameter, ...] = ()
    norm: BatchNorm | None = None


def node_operation(module: fx.GraphModule, node: fx.Node) -> Callable[..., Any]:
    """A function that computes a node from the values of its ``all_input_nodes``."""
    target: Any = node.target
    if node.op == "get_attr":
        constant = _attribute(module, target)
        return lambda: constant
    if node.op == "placeholder":
        return lambda images: images
    call: Callable[..., Any] = target
    if node.op == "call_module":
        call = module.get_submodule(target)
    elif node.op == "call_method":
        call = _method(target)
    order = {n: place for place, n in enumerate(node.all_input_nodes)}
    if not node.kwargs and tuple(order) == node.args:
        return call

    def run(*inputs: Any) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: inputs[order[n]])
        return call(*args, **kwargs)

    return run


def node_weights(module: fx.GraphModule, node: fx.Node) -> tuple[nn.Parameter, ...]:
    """The parameters that a node uses."""
    if node.op == "call_module":
        return tuple(module.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value = _attribute(module, str(node.target))
        return (value,) if isinstance(value, nn.Parameter) else ()
    return ()


def _method(name: str) -> Callable[..., Any]:
    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(owner, name)(*args, **kwargs)

    return call


def _attribute(module: fx.GraphModule, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def mean_of_probabilities(a: Tensor, b: Tensor) -> Tensor:
    """The ensemble of two networks: the mean of their class probabilities, as logits.

    Args:
        a: Logits ``(N, classes, ...)``.
        b: Logits of the same shape.

    Returns:
        ``log((softmax(a) + softmax(b)) / 2)``, whose softmax is that mean.
    """
    return torch.logaddexp(F.log_softmax(a, dim=1), F.log_softmax(b, dim=1)) - math.log(2)
