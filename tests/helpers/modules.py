"""A tiny network of one's own, as a module and with another forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tiny(nn.Module):
    """Ten classes, from images of any size."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def with_head(head: Callable[[Tensor], Tensor], part: nn.Module | None = None) -> Tiny:
    """The same, with something between its features ``(N, 8, H, W)`` and its last layer."""

    class Other(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            features = self.features(x)
            features = features if self.part is None else self.part(features)
            logits: Tensor = self.head(head(features))
            return logits

    return Other()


def save_program(module: nn.Module, path: str, *, batch: int = 2, dynamic: bool = True) -> None:
    """Export a module for images of 32 pixels."""
    images = torch.randn(batch, 3, 32, 32)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(module, (images,), dynamic_shapes=shapes), path)
