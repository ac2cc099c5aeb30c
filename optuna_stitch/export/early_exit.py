"""A cascade as one graph, which the formats that hold graphs can hold.

`CascadeModule` looks at its answers to decide what to do next, which no graph can.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from optuna_stitch.export.trace import Traced, export_program, zeros
from optuna_stitch.stitching.subnetwork import CascadeModule


class CascadeGraph(nn.Module):
    """A cascade as a module that can be traced whole.

    Args:
        cascade: The cascade.
    """

    def __init__(self, cascade: CascadeModule) -> None:
        super().__init__()
        self.first = cascade.first
        self.rest = cascade.rest
        self.exit = cascade.exit

    def both(self, logits: Tensor, *handed: Tensor) -> Tensor:
        """The answer of both heads.

        Args:
            logits: Of the first head, ``(N, classes, ...)``.
            *handed: What the first stage hands over, of the same images.
        """
        heads = (logits, self.rest(*handed))
        return self.exit.mean(*(heads if self.exit.first == 0 else heads[::-1]))


class Gathered(CascadeGraph):
    """Early exit for a batch: the rest runs on the images that go on, and not at all without any.

    Two branches, since graphs promise to fit all sizes but nought, at which some operators have no
    answer, such as a reshape to as many columns as there are.
    """

    def forward(self, *images: Tensor) -> Tensor:
        """Logits ``(N, classes, ...)``.

        Args:
            *images: One tensor ``(N, C, H, W)`` per view.
        """
        logits, *handed = self.first(*images)
        unsure = self.exit.goes_on(logits)
        answers: Tensor = torch.cond(
            unsure.any(), self._answer, self._keep, (unsure, logits, *handed)
        )
        return answers

    def _answer(self, unsure: Tensor, logits: Tensor, *handed: Tensor) -> Tensor:
        rows = unsure.nonzero()[:, 0]
        torch._check(rows.shape[0] >= 1)
        answers = self.both(logits[rows], *(value[rows] for value in handed))
        return logits.index_copy(0, rows, answers)

    def _keep(self, unsure: Tensor, logits: Tensor, *handed: Tensor) -> Tensor:
        return logits.clone()  # branches may not return what they are given


class Single(CascadeGraph):
    """Early exit for one image: the rest runs or does not."""

    def forward(self, *images: Tensor) -> Tensor:
        """Logits ``(1, classes, ...)``.

        Args:
            *images: One tensor ``(1, C, H, W)`` per view.
        """
        logits, *handed = self.first(*images)
        answers: Tensor = torch.cond(
            self.exit.goes_on(logits).any(), self.both, self._keep, (logits, *handed)
        )
        return answers

    def _keep(self, logits: Tensor, *handed: Tensor) -> Tensor:
        return logits.clone()


class BothHeads(CascadeGraph):
    """Both heads for all images: without a branch, where every image costs the most."""

    def forward(self, *images: Tensor) -> Tensor:
        """Logits ``(N, classes, ...)``.

        Args:
            *images: One tensor ``(N, C, H, W)`` per view.
        """
        logits, *handed = self.first(*images)
        unsure = self.exit.goes_on(logits).reshape(-1, *(1,) * (logits.dim() - 1))
        return torch.where(unsure, self.both(logits, *handed), logits)


def whole_program(
    traced: Traced, kind: type[CascadeGraph], *, free: bool = True
) -> torch.export.ExportedProgram:
    """Trace a network whole.

    Args:
        traced: The network.
        kind: As which graph, if it is a cascade.
        free: Whether the batch may have any size; else it is one image.

    Raises:
        ExportError: If torch cannot trace it.
    """
    inputs = zeros(traced.views) if free else zeros(traced.views, 1)
    if not isinstance(traced.module, CascadeModule):
        if free:
            return traced.stages[0].program
        return export_program(traced.module, inputs, free=False)
    graph = fx.Graph()
    images = [graph.placeholder(name) for name in traced.views]
    graph.output(graph.call_module("network", tuple(images)))
    named = fx.GraphModule({"network": kind(traced.module)}, graph).eval()
    return export_program(named, inputs, free=free)
