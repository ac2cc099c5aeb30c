"""What a graph's nodes cost: shapes and multiply-accumulates, without running the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from optuna_stitch.errors import CaptureError


@dataclass(frozen=True)
class NodeCost:
    """Figures of one node.

    Args:
        shape: Shape of its output at the traced batch size, None where it is no tensor.
        macs: Multiply-accumulates per image.
        storage: Nodes with the same number are views of one value.
        holds_tensors: Whether its output is or holds a tensor (a tuple of them, say).
    """

    shape: tuple[int, ...] | None
    macs: int
    storage: int
    holds_tensors: bool


# A batch size that no other dimension is likely to have, so that dimension 0 is told apart.
TRACED_BATCH = 3


def measure(
    captured: fx.GraphModule, input_shape: tuple[int, ...], name: str
) -> dict[str, NodeCost]:
    """Measure every node on fake tensors: nothing is allocated, nothing computed.

    A multiply-accumulate is half of what torch's flop counter counts, which covers convolutions,
    matrix products and attention; elementwise work and normalization count as nothing, as is
    usual in the field.

    Args:
        captured: The graph.
        input_shape: Shape (C, H, W) of one image.
        name: The network, for errors.

    Returns:
        The figures by node name.

    Raises:
        CaptureError: If the network refuses an input of this shape.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        meter = _Meter(captured)
        try:
            meter.run(torch.empty(TRACED_BATCH, *input_shape))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CaptureError(
                f"{name} refuses images of {'×'.join(map(str, input_shape))}: {reason}. "
                "Give `input_size` a size that it was made for."
            ) from error
    return meter.costs


class _Meter(fx.Interpreter):
    def __init__(self, captured: fx.GraphModule) -> None:
        super().__init__(captured)
        self.costs: dict[str, NodeCost] = {}
        self._storages: dict[Any, int] = {}
        self._alive: list[Any] = []  # a freed storage's id would be given out again

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
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
