"""What a graph's nodes cost: shapes and multiply-accumulates, without running the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from optuna_stitch.models.capture import TRACED_BATCH


@dataclass(frozen=True)
class NodeCost:
    """Shape and cost of one node.

    Args:
        shape: Shape of its output at the traced batch size; None where it is no tensor.
        macs: Multiply-accumulates per image.
        storage: Nodes with the same number are views of one value.
        holds_tensors: Whether its output is or holds a tensor (a tuple of them, say).
    """

    shape: tuple[int, ...] | None
    macs: int
    storage: int
    holds_tensors: bool


def measure(captured: fx.GraphModule, input_shape: tuple[int, ...]) -> dict[str, NodeCost]:
    """Measure every node on fake tensors: nothing is allocated, nothing computed.

    Multiply-accumulates are half of what torch's flop counter counts: convolutions, matrix
    products and attention. Elementwise operations and normalization count as nothing, as is usual
    in the field.

    Args:
        captured: The graph.
        input_shape: Shape (C, H, W) of one image.

    Returns:
        Shapes and costs by node name.

    Raises:
        Exception: Whatever the network raises where it does not take images of this shape.
    """
    meter = _Meter(captured)
    with unchanged(captured), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        meter.run(torch.empty(TRACED_BATCH, *input_shape))
    return meter.costs


def image_dependent(captured: fx.GraphModule, costs: dict[str, NodeCost]) -> set[fx.Node]:
    """The nodes whose tensors, alone or in a tuple, are computed from the images.

    A shape taken from a feature carries nothing of the feature, so it ends the dependence.

    Args:
        captured: The graph.
        costs: Shapes and costs by node name.
    """
    depends: set[fx.Node] = set()
    for node in captured.graph.nodes:
        if node.op == "placeholder" or (
            node.op != "output"
            and costs[node.name].holds_tensors
            and any(n in depends for n in node.all_input_nodes)
        ):
            depends.add(node)
    return depends


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules at the end.

    Some modules cache tensors in their forward (attention biases, relative positions); after a run
    on fake tensors those would be fake.

    Args:
        module: The network.
    """
    before = [(part, dict(vars(part))) for part in module.modules()]
    # hooks and parts can only be changed later if they are in the same dictionaries as before
    inside = [(v, dict(v)) for _, held in before for v in held.values() if isinstance(v, dict)]
    try:
        yield
    finally:
        for changed, attributes in [*((vars(part), held) for part, held in before), *inside]:
            changed.clear()
            changed.update(attributes)


def attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Floating-point operations of attention, from its definition: ``softmax(QKᵀ) V``.

    Args:
        query: Shape (N, heads, queries, D).
        key: Shape (N, heads, keys, D).
        value: Shape (N, heads, keys, D').
        *_: Further arguments, which do not matter.
        **__: Likewise.
    """
    *batch, queries, width = query
    keys, out = key[-2], value[-1]
    return 2 * math.prod(batch) * queries * keys * (width + out)


# Some of torch's builds for CPUs count their fused attention as nothing.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
}


class _Meter(fx.Interpreter):
    def __init__(self, captured: fx.GraphModule) -> None:
        super().__init__(captured)
        self.costs: dict[str, NodeCost] = {}
        self._storages: dict[Any, int] = {}
        self._alive: list[Any] = []  # a freed storage's id would be given out again

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
            output = super().run_node(n)
        macs = counter.get_total_flops() // 2 // TRACED_BATCH
        shape, storage = None, -1
        if isinstance(output, Tensor):
            shape = tuple(output.shape)
            memory = output.untyped_storage()
            self._alive.append(memory)
            storage = self._storages.setdefault(memory._cdata, len(self._storages))
        holds_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(output))
        self.costs[n.name] = NodeCost(shape, macs, storage, holds_tensors)
        return output
