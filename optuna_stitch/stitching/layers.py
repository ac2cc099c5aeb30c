"""The stitch: a small linear layer from one parent's feature to the other's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_stitch.networks.layouts import Layout, resample


class Stitch(nn.Module):
    """Turn the feature at one end of a match into what the other end expects.

    On the grid it is a 1 × 1 convolution, at whichever of the two resolutions is smaller; the
    resampling to the target's grid is fixed. Prefix tokens have a linear map each, from the
    source's prefix token of the same place, or from the mean over its grid where it has none.

    Args:
        source: Layout of the feature that is read, C_s channels.
        target: Layout of the feature that is replaced, C_t channels and P prefix tokens.

    Attributes:
        weight: ``(C_t, C_s)``.
        bias: ``(C_t,)``.
        prefix_weight: ``(P, C_t, C_s)``.
        prefix_bias: ``(P, C_t)``.
    """

    def __init__(self, source: Layout, target: Layout) -> None:
        super().__init__()
        self.source = source
        self.target = target
        rows, columns, prefix = target.channels, source.channels, target.prefix
        self.weight = nn.Parameter(torch.zeros(rows, columns), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(rows), requires_grad=False)
        self.prefix_weight = nn.Parameter(torch.zeros(prefix, rows, columns), requires_grad=False)
        self.prefix_bias = nn.Parameter(torch.zeros(prefix, rows), requires_grad=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return (self._shrunk[0] * self._shrunk[1] + self.target.prefix) * self.weight.numel()

    @property
    def _shrunk(self) -> tuple[int, int]:
        """The grid on which the channels are mixed: the smaller one in each direction."""
        (height, width), (rows, columns) = self.source.grid, self.target.grid
        return min(height, rows), min(width, columns)

    def sources(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the linear maps read.

        Args:
            feature: The source feature of N images, in its own layout.

        Returns:
            The grid ``(N, C_s, h, w)`` at the smaller resolution, and where P > 0 the vectors
            ``(N, P, C_s)`` that prefix tokens are made from.
        """
        grid, prefix = self.source.split(feature)
        read: Tensor | None = None
        if self.target.prefix:
            wanted = self.target.prefix
            if prefix is None:
                read = grid.mean(dim=(2, 3)).unsqueeze(1).expand(-1, wanted, -1)
            else:
                places = [min(place, self.source.prefix - 1) for place in range(wanted)]
                read = prefix[:, places]
        return resample(grid, self._shrunk), read

    def forward(self, feature: Tensor) -> Tensor:
        """Map a source feature, N images in the source's layout, to the target's layout."""
        grid, read = self.sources(feature)
        mapped = F.conv2d(grid, self.weight[:, :, None, None], self.bias)
        prefix: Tensor | None = None
        if read is not None:
            prefix = torch.einsum("npc,prc->npr", read, self.prefix_weight) + self.prefix_bias
        return self.target.join(resample(mapped, self.target.grid), prefix)

    def extra_repr(self) -> str:
        """What `print` shows: the two layouts."""
        return f"{self.source} -> {self.target}"
