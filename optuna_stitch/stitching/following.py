"""What is done with a layer's answers, up to the next activation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_stitch.stitching.batch_norm import BatchNorm
from optuna_stitch.stitching.refit import Bounds

# What adds two values, and what passes a value on.
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)

# Between what values activations hear differences; outside, all sounds the same.
_HEARD: dict[Any, tuple[float, float]] = {
    **dict.fromkeys([nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"], (0.0, inf)),
    **dict.fromkeys([nn.ReLU6, F.relu6], (0.0, 6.0)),
    **dict.fromkeys([nn.Hardswish, F.hardswish], (-3.0, inf)),
    **dict.fromkeys([nn.Hardsigmoid, F.hardsigmoid], (-3.0, 3.0)),
}


@dataclass(frozen=True)
class Step:
    """One operation that reads nothing but what the one before says, or another value besides.

    Args:
        place: Where it is among the operations.
        calls: What it calls: the module, the function, or the method's name.
        norm: What it normalizes by, if it is a BatchNorm.
        run: Computes it.
        added: Of two values that are read, the other one: as the network has it, and as the
            parent has it; None where it reads one value, or where the other is not known before.
    """

    place: int
    calls: Any
    norm: BatchNorm | None
    run: Callable[..., Any]
    added: tuple[int, int] | None


@dataclass(frozen=True)
class Following:
    """What follows a layer that answers y: ``activation(scale * y + offset + added)``.

    Args:
        norm: The BatchNorm that gives scale and offset; None without.
        scale: ``(C,)``, or None without a BatchNorm.
        offset: Likewise.
        own: The operation whose value is added; None without.
        raw: What it is instead in the parent.
        heard: Between what the activation hears differences; None without an activation, or
            where it hears all.
    """

    norm: int | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    own: int | None = None
    raw: int | None = None
    heard: tuple[float, float] | None = None

    @staticmethod
    def of(steps: Sequence[Step]) -> Following:
        """What the operations after a layer do.

        Args:
            steps: A row of operations, each the only one that reads what the one before says.
        """
        found = Following()
        for step in steps:
            if step.norm is not None:
                known = None if found.norm is not None else _affine(step.norm, step.run)
                if known is None or found.own is not None:
                    break
                scale, offset, activation = known
                found = replace(found, norm=step.place, scale=scale, offset=offset)
                if not isinstance(activation, _IDENTITIES):
                    return replace(found, heard=_HEARD.get(type(activation)))
            elif step.added is not None and found.own is None and step.calls in _ADDITIONS:
                found = replace(found, own=step.added[0], raw=step.added[1])
            elif not isinstance(step.calls, _IDENTITIES):
                kind = type(step.calls) if isinstance(step.calls, nn.Module) else step.calls
                return replace(found, heard=_HEARD.get(kind))
        return found

    def lacking(self, difference: Tensor) -> Tensor:
        """What a layer would have to answer for a difference of the sum.

        Args:
            difference: Any, ``(N, C, H, W)`` where a BatchNorm scales.
        """
        if self.scale is None:
            return difference
        # what is hardly let through is not asked for
        factor = torch.where(_is_let_through(self.scale), 1 / self.scale, 0.0)
        return difference * factor[:, None, None]

    def bounds(self, added: Tensor | None) -> Bounds:
        """Between which answers of the layer the activation hears differences.

        Args:
            added: The value of ``own``.

        Returns:
            Both in the answers' shape, or in one that is broadcast to it.
        """
        assert self.heard is not None
        low, high = map(torch.tensor, self.heard)
        if added is not None:
            low, high = low.to(added) - added, high.to(added) - added
        if self.scale is None or self.offset is None:
            return low, high
        scale, offset = self.scale[:, None, None], self.offset[:, None, None]
        one, other = (low.to(scale) - offset) / scale, (high.to(scale) - offset) / scale
        through = _is_let_through(scale)
        return (
            torch.where(through, one.minimum(other), -inf),
            torch.where(through, one.maximum(other), inf),
        )


def _is_let_through(scale: Tensor) -> Tensor:
    """Which channels a BatchNorm lets through by more than hardly, in the shape of its scale."""
    return scale.abs() > 1e-2 * scale.abs().median()


@torch.no_grad()
def _affine(norm: BatchNorm, run: Callable[..., Any]) -> tuple[Tensor, Tensor, nn.Module] | None:
    """What a BatchNorm of images multiplies by and adds, ``(C,)``, and its own activation.

    None if it does anything else.
    """
    module = norm.normalizer
    steps = norm.mean + torch.tensor([0.0, 1.0, -2.0], device=norm.mean.device)[:, None]
    steps = steps[:, :, None, None]
    activation = getattr(module, "act", None) or nn.Identity()
    try:
        answers = run(steps)[:, :, 0, 0]
        if module is None:
            scale, offset = answers[1] - answers[0], answers[0]
        else:
            weight, bias = (getattr(module, name) for name in ("weight", "bias"))
            scale = (norm.variance + norm.eps).rsqrt()
            scale = scale if weight is None else scale * weight
            offset = torch.zeros_like(scale) if bias is None else bias
        expected = activation(scale * (steps[:, :, 0, 0] - norm.mean) + offset)
    except (RuntimeError, TypeError, ValueError):  # of vectors, or of more than one value
        return None
    if not torch.allclose(answers, expected, rtol=1e-4, atol=1e-4):
        return None
    return scale, offset - norm.mean * scale, activation
