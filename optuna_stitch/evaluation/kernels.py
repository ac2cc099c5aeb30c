"""How a program's operations are computed: as the parents do, or in fewer and faster kernels.

- ``plain``: every operation as it is in its parent. What comes out equals what the extracted
  module answers, bit for bit.
- ``fast``: convolutions read channels last, and a BatchNorm behind a convolution becomes part of
  its weights. What comes out differs from ``plain`` by rounding, and is the same bit for bit
  whether a subnetwork runs alone or with others.
- ``float16``, ``bfloat16``: as ``fast``, with convolutions and matrix products in 16 bits.
  Figures move by what 11 and 8 bits of mantissa lose.

On a GPU all but ``plain`` may round the factors of products to TF32.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from optuna_stitch.evaluation.settings import Kernels
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.device import float32_products, free_memory

# GiB for the values of a plan on the processor.
_MEMORY = 4.0

# The share of an accelerator's free memory that they take there; pixels, labels and what others
# do need some too.
_SHARE = 0.8

# Images per batch on a processor.
SMALL_BATCH = 50

# Images per batch on an accelerator at most, and the share of a plan's memory that both parents
# alone may take for them.
_LARGEST_BATCH = 256
_PARENTS = 1 / 16

SIXTEEN_BITS: dict[Kernels, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def kernels_on(device: torch.device, kernels: Kernels) -> Kernels:
    """What ``auto`` is on a device.

    Args:
        device: Where it is computed.
        kernels: As asked for.
    """
    if kernels != "auto":
        return kernels
    return "fast" if device.type == "cpu" else "float16"


def memory_on(device: torch.device, memory: float | None) -> float:
    """GiB for the values of a plan on a device.

    Args:
        device: Where it is computed.
        memory: As asked for.
    """
    if memory is not None:
        return memory
    free = free_memory(device)
    return _MEMORY if free is None else _SHARE * free / 2**30


def batch_on(supergraph: Supergraph, memory: float) -> int:
    """Images per batch where it is not said.

    A processor is busy with few, and their values stay in its cache; an accelerator takes as many
    as leave room for the other networks of a plan.

    Args:
        supergraph: Of the supernetwork that is evaluated.
        memory: GiB for the values of a plan.
    """
    if supergraph.device.type == "cpu":
        return min(SMALL_BATCH, supergraph.batch_size)
    image = 4 * supergraph.parents_program().elements
    return max(1, min(_LARGEST_BATCH, int(_PARENTS * memory * 2**30 / image)))


@contextmanager
def precision(device: torch.device, kernels: Kernels) -> Iterator[None]:
    """Let operations be computed as exactly as kernels say.

    Args:
        device: Where.
        kernels: Any but ``auto``.
    """
    with ExitStack() as stack:
        stack.enter_context(float32_products(device, exact=kernels == "plain"))
        if kernels in SIXTEEN_BITS:
            stack.enter_context(torch.autocast(device.type, SIXTEEN_BITS[kernels]))
        yield


# Others may change their weights as they run, or do more than normalize.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)

_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


class Folding:
    """Fold BatchNorms into the convolutions before them, in one program after another.

    Whether a BatchNorm is folded depends on the supernetwork alone, so that a subnetwork has the
    same kernels in every program: it is, where nothing else can read the convolution, under any
    genotype. What is downstream of no stitch is folded once and kept.

    Args:
        supergraph: The operations of the programs.
    """

    def __init__(self, supergraph: Supergraph) -> None:
        operations = supergraph.operations
        readers = Counter(read for operation in operations for read in operation.inputs)
        self._kept: dict[int, _Folded] = {}
        self._convolution_of: dict[int, nn.Conv2d] = {}
        for place, operation in enumerate(operations):
            if operation.norm is None:
                continue
            before = operation.inputs[0]
            run = operations[before].run
            alone = readers[before] == 1 and before not in supergraph.targets
            if alone and isinstance(run, nn.Conv2d) and type(run) in _CONVOLUTIONS:
                norm = operation.norm.module(operation.norm.mean, operation.norm.variance)
                if type(norm) in _NORMS:
                    self._convolution_of[place] = run

    def __call__(self, program: Program) -> None:
        """Fold wherever that is possible.

        Args:
            program: What to change, in place. Its statistics are final.
        """
        for step in program.steps:
            place = program.places[step]
            convolution = self._convolution_of.get(place)
            norm = program.operations[step].norm
            if convolution is None or norm is None or step in program.given:
                continue
            folded = None if program.paths[step] else self._kept.get(place)
            if folded is None:
                statistics = program.statistics.get(step, (norm.mean, norm.variance))
                folded = _Folded(convolution, norm.module(*statistics))
                if not program.paths[step]:
                    folded.keep()
                    self._kept[place] = folded
            program.replace(step, folded, program.reads[program.reads[step][0]])


class _Folded:
    """A convolution that normalizes too.

    Its weights are made anew at every call, which costs little beside the convolution: every
    path has statistics of its own, and all their weights at once would be many networks' worth.

    Args:
        convolution: The convolution.
        norm: The BatchNorm behind it.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.Module) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None, norm
        assert variance is not None, norm
        self._weight = convolution.weight
        self._scale = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            self._scale = norm.weight * self._scale
        _, bias = fuse_conv_bn_weights(
            convolution.weight[:, :1, :1, :1],  # only the bias is wanted
            convolution.bias,
            mean,
            variance,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        self._held: Tensor | None = None
        self.convolution = copy.copy(convolution)
        self.convolution._parameters = {"weight": None, "bias": nn.Parameter(bias, False)}
        self._after = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []

    def keep(self) -> None:
        """Make the weights once and for all."""
        self._held = self._weights()

    def __call__(self, feature: Tensor) -> Tensor:
        weights = self._weights() if self._held is None else self._held
        parameters: dict[str, Any] = self.convolution._parameters
        parameters["weight"] = weights
        value: Tensor = self.convolution(feature)
        parameters["weight"] = None
        for module in self._after:
            value = module(value)
        return value

    def _weights(self) -> Tensor:
        return self._weight * self._scale[:, None, None, None]
