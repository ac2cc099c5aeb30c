"""Sums over images and positions, from which every least-squares solution follows.

The sums are kept by what is read, not by stitch: whatever several stitches read is summed once,
and the products of two readings serve both directions. They add up: processes that saw different
images add their sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_stitch.data.splits import CPU
from optuna_stitch.models.layouts import Layout
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.layer import Part, read_part

# Sums are kept apart for the images that are fitted and for those that are held out.
FITTED, HELD_OUT = 0, 1

# One image in this many is held out, to choose by its error.
EVERY = 5

# Columns of a symmetric product that are computed at once.
_STRIP = 96


@dataclass(frozen=True)
class Reading:
    """What a linear map reads, or has to reproduce.

    Args:
        side: Of which parent.
        node: Its node.
        layout: The node's layout.
        part: Which part of its feature.
        size: Grid that the part is resampled to.
        kernel: Side k of the neighbourhood that is read at every position, odd.
    """

    side: Side
    node: str
    layout: Layout
    part: Part
    size: tuple[int, int]
    kernel: int = 1

    @property
    def width(self) -> int:
        """Number of columns: channels times taps."""
        return self.layout.channels * self.kernel**2

    @property
    def base(self) -> Reading:
        """The same without neighbours."""
        return Reading(self.side, self.node, self.layout, self.part, self.size)


@dataclass(frozen=True)
class Pair:
    """A linear map to be fitted: what it reads, and what it has to reproduce."""

    source: Reading
    target: Reading


class Positions:
    """Which positions of a grid count: all, or as many as wanted, drawn once by the seed.

    Args:
        size: Height and width of the grid.
        wanted: How many at most.
        seed: Draws them.
        device: Where the grids are.
    """

    def __init__(
        self, size: tuple[int, int], wanted: int, seed: int, device: torch.device = CPU
    ) -> None:
        cells = size[0] * size[1]
        chosen = torch.arange(cells)
        if cells > wanted:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(cells, generator=generator)[:wanted].sort().values
        chosen = chosen.to(device)
        self.rows, self.columns = chosen // size[1], chosen % size[1]

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, grid: Tensor, kernel: int = 1) -> Tensor:
        """Neighbourhoods at the positions, zero beyond the border.

        Args:
            grid: ``(N, C, h, w)``.
            kernel: Side of a neighbourhood.

        Returns:
            ``(N, positions, C · kernel²)``, taps in the order of a convolution's kernel.
        """
        reach = kernel // 2
        if reach:
            grid = torch.nn.functional.pad(grid, (reach,) * 4)
        width = grid.shape[3]
        taps = [down * width + right for down in range(kernel) for right in range(kernel)]
        first = self.rows * width + self.columns
        cells = (first[:, None] + torch.tensor(taps, device=first.device)).flatten()
        read = grid.flatten(2).transpose(1, 2).index_select(1, cells)
        return read.reshape(len(grid), len(first), len(taps), -1).transpose(2, 3).flatten(2)


class Moments:
    """Sums, squares and products of readings over images, in float64.

    Args:
        pairs: The linear maps that are to be fitted.
        positions: How many positions of a grid count at most.
        seed: Draws the positions.
        device: Where the features are.
    """

    def __init__(
        self, pairs: Iterable[Pair], positions: int, seed: int, device: torch.device = CPU
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.pairs = list(pairs)
        self.count = zeros(2)
        self.positions = {
            size: Positions(size, positions, seed, device)
            for size in {pair.source.size for pair in self.pairs}
        }
        self.sums: dict[Reading, Tensor] = {}
        self.squares: dict[Reading, Tensor] = {}
        self.products: dict[tuple[Reading, Reading], Tensor] = {}
        for pair in self.pairs:
            for reading in (pair.source.base, pair.target):
                self.sums.setdefault(reading, zeros(2, reading.width, *reading.size))
            self.squares.setdefault(pair.target, zeros(2, pair.target.width))
            for one, other in _products(pair):
                if (other, one) not in self.products:
                    self.products.setdefault((one, other), zeros(2, one.width, other.width))

    @staticmethod
    def bytes_of(pair: Pair) -> tuple[int, int]:
        """How much memory a linear map takes: its sums, if it shares none, and to be solved.

        Args:
            pair: The linear map.
        """
        products = sum(one.width * other.width for one, other in _products(pair))
        cells = pair.source.size[0] * pair.source.size[1]
        by_position = cells * (pair.source.layout.channels + pair.target.layout.channels)
        return 2 * 8 * (products + by_position), 8 * 6 * pair.source.width**2

    @property
    def tensors(self) -> list[Tensor]:
        """All sums, for processes to add up."""
        return [self.count, *self.sums.values(), *self.squares.values(), *self.products.values()]

    def add(self, features: dict[tuple[Side, str], Tensor], held_out: Tensor) -> Reading | None:
        """Add a batch.

        Args:
            features: Raw features of N images by parent and node.
            held_out: ``(N,)``, which of the images are held out.

        Returns:
            None, or the first reading that has NaN or infinite values; nothing is added then.
        """
        grids: dict[Reading, Tensor] = {}
        for reading in self.sums:
            feature = features[reading.side, reading.node]
            grids[reading] = read_part(reading.layout, feature, reading.part, reading.size)
            if not grids[reading].isfinite().all():
                return reading
        for part, images in ((FITTED, ~held_out), (HELD_OUT, held_out)):
            if not images.any():
                continue
            self._add(part, {reading: grid[images] for reading, grid in grids.items()})
            self.count[part] += int(images.sum())
        return None

    def _add(self, part: int, grids: dict[Reading, Tensor]) -> None:
        samples: dict[Reading, Tensor] = {}
        for reading, total in self.sums.items():
            total[part] += grids[reading].sum(0, dtype=torch.float64)
        for reading in {reading for pair in self.products for reading in pair}:
            gathered = self.positions[reading.size].gather(grids[reading.base], reading.kernel)
            samples[reading] = gathered.flatten(0, 1).double()
        for reading, total in self.squares.items():
            total[part] += samples[reading].square().sum(0)
        for (one, other), total in self.products.items():
            product = _gram(samples[one]) if one == other else samples[one].T @ samples[other]
            total[part] += product

    def product(self, one: Reading, other: Reading) -> Tensor:
        """Sums ``(2, width of one, width of other)`` of the products of two readings.

        Args:
            one: A reading.
            other: Another one; their product must be summed.
        """
        if (one, other) in self.products:
            return self.products[one, other]
        return self.products[other, one].transpose(1, 2)

    def means(self, reading: Reading) -> Tensor:
        """Mean by position, ``(2, positions, width)``.

        Args:
            reading: The reading.
        """
        sums = self.sums[reading.base] / self.count[:, None, None, None]
        return self.positions[reading.size].gather(sums, reading.kernel)


def _gram(samples: Tensor) -> Tensor:
    """``samples.T @ samples``, of which only one half is computed."""
    gram = samples.new_empty(samples.shape[1], samples.shape[1])
    for start in range(0, len(gram), _STRIP):
        strip = slice(start, start + _STRIP)
        product = samples[:, strip].T @ samples[:, start:]
        gram[strip, start:] = product
        gram[start:, strip] = product.T
    return gram


def _products(pair: Pair) -> list[tuple[Reading, Reading]]:
    return [(pair.source, pair.source), (pair.source, pair.target)]
