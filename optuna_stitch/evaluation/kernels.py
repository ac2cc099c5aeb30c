"""How a program's operations are computed: as the parents do, or in fewer and faster kernels.

- ``plain``: every operation as it is in its parent. What comes out equals what the extracted
  module answers, bit for bit.
- ``fast``: convolutions read channels last, and a BatchNorm behind a convolution becomes part of
  its weights. What comes out differs from ``plain`` by rounding, and equals what the extracted
  module answers after the same two changes, bit for bit.
- ``bfloat16``: as ``fast``, with convolutions and matrix products in 16 bits. Figures move by
  what 8 bits of mantissa lose.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from optuna_stitch.stitching.program import Program

Kernels = Literal["plain", "fast", "bfloat16"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)

# Others may change their weights as they run.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)


class Folding:
    """Fold BatchNorms into the convolutions before them, in one program after another.

    What is downstream of no stitch is folded once and kept.
    """

    def __init__(self) -> None:
        self._kept: dict[int, nn.Module] = {}

    def __call__(self, program: Program) -> None:
        """Fold wherever a BatchNorm is all that reads a convolution.

        Args:
            program: What to change, in place. Its statistics are final.
        """
        readers = [0] * len(program.operations)
        for reads in (*program.reads, program.outputs):
            for read in reads:
                readers[read] += 1
        for step, operation in enumerate(program.operations):
            norm = operation.norm
            if norm is None:
                continue
            before = program.reads[step][0]
            convolution = program.operations[before].run
            if readers[before] > 1 or type(convolution) not in _CONVOLUTIONS:
                continue
            assert isinstance(convolution, nn.Conv2d)
            place = program.places[step]
            folded = None if program.stitched[step] else self._kept.get(place)
            if folded is None:
                statistics = program.statistics.get(step, (norm.mean, norm.variance))
                folded = _folded(convolution, norm.module(*statistics))
            if folded is None:
                continue
            if not program.stitched[step]:
                self._kept[place] = folded
            program.replace(step, folded, program.reads[before])


def _folded(convolution: nn.Conv2d, norm: nn.Module) -> nn.Module | None:
    """A convolution that normalizes too; None for norms that do more than is known here."""
    if type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None, norm
    assert variance is not None, norm
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    twin = copy.copy(convolution)
    twin._parameters = {
        "weight": nn.Parameter(weight.contiguous(memory_format=torch.channels_last), False),
        "bias": nn.Parameter(bias, False),
    }
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(twin, norm.drop, norm.act).eval()
    return twin
