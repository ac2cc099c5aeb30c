"""Sums over images and positions, from which every least-squares solution follows.

They are in float64, or, on devices that have none at speed, in pairs of float32 numbers: a sum and
what rounding took from it. There numbers are cut before they are multiplied, into
handfuls of bits whose products add up without any error (Ozaki, Ogita, Oishi and Rump, "Error-free
transformations of matrix multiplication", Numerical Algorithms 59, 2012).

The sums are kept by what is read, not by stitch: whatever several stitches read is summed once,
and the products of two readings serve both directions. They add up: processes that saw different
images add their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optuna_stitch.data.splits import CPU
from optuna_stitch.models.layouts import Layout, folds
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.layer import Part, read_part
from optuna_stitch.utils.device import are_finite, fetch, send, sums_in_float64

# Sums are kept apart for the images that are fitted and for those that are held out.
FITTED, HELD_OUT = 0, 1

# One image in this many is held out, to choose by its error.
EVERY = 5

# Columns of a symmetric product that are computed at once.
_STRIP = 96

# Rows whose products of eight bits by eight add up exactly in the 24 bits of float32.
_ROWS = 128


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
        folded: Whether positions of a finer grid are channels; see `Stitch`.
        context: Whether every position reads what all have in common too; see `Stitch`.
    """

    side: Side
    node: str
    layout: Layout
    part: Part
    size: tuple[int, int]
    kernel: int = 1
    folded: bool = False
    context: bool = False

    @property
    def channels(self) -> int:
        """Number of columns without neighbours."""
        if self.part == "context":
            return self.layout.channels * (1 + self.layout.prefix)
        times = folds(self.layout.grid, self.size) if self.folded else 1
        return self.layout.channels * times**2

    @property
    def seen(self) -> int:
        """Number of columns that are the same at every position; the last ones."""
        return self.layout.channels * (1 + self.layout.prefix) if self.context else 0

    @property
    def width(self) -> int:
        """Number of columns: channels times taps, and what is the same at every position."""
        return self.channels * self.kernel**2 + self.seen

    @property
    def base(self) -> Reading:
        """The same without neighbours and context."""
        return replace(self, kernel=1, context=False)

    @property
    def bases(self) -> tuple[Reading, ...]:
        """What is summed for it: its grid, and what all positions have in common."""
        if not self.context:
            return (self.base,)
        return self.base, Reading(self.side, self.node, self.layout, "context", (1, 1))

    def read(self, feature: Tensor) -> Tensor:
        """What a base reads, ``(N, width, *size)``.

        Args:
            feature: N images in its layout.
        """
        return read_part(self.layout, feature, self.part, self.size, folded=self.folded)

    def gather(self, positions: Positions, grids: Sequence[Tensor]) -> Tensor:
        """Its columns at some positions, ``(N, positions, width)``.

        Args:
            positions: Which.
            grids: What its bases read, or means of such.
        """
        own = positions.gather(grids[0], self.kernel)
        seen = [grid.flatten(1)[:, None].expand(-1, own.shape[1], -1) for grid in grids[1:]]
        return torch.cat([own, *seen], dim=2) if seen else own


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

    def to(self, device: torch.device) -> None:
        """Move them, in place.

        Args:
            device: Where the grids are.
        """
        self.rows, self.columns = self.rows.to(device), self.columns.to(device)

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
        cells = (first[:, None] + send(torch.tensor(taps), first.device)).flatten()
        read = grid.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, cells)
        return read.reshape(len(grid), len(first), len(taps), -1).transpose(2, 3).flatten(2)


class Moments:
    """Sums, squares and products of readings over images.

    Args:
        pairs: The linear maps that are to be fitted.
        positions: How many positions of a grid count at most.
        seed: Draws the positions.
        device: Where the features are.
        float64: Whether to sum in float64; if None, where the device does that at speed. Other
            sums are float64 after `finish`.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        positions: int,
        seed: int,
        device: torch.device = CPU,
        *,
        float64: bool | None = None,
    ) -> None:
        self._float64 = sums_in_float64(device) if float64 is None else float64

        def zeros(*shape: int) -> Tensor:
            if self._float64:
                return torch.zeros(shape, dtype=torch.float64, device=device)
            return torch.zeros(2, *shape, device=device)  # sums, and what rounding took from them

        self.pairs = list(pairs)
        self.count = torch.zeros(2, dtype=torch.float64, device=device if self._float64 else CPU)
        self.positions = {
            size: Positions(size, positions, seed, device)
            for size in {pair.source.size for pair in self.pairs}
        }
        self.sums: dict[Reading, Tensor] = {}
        self.squares: dict[Reading, Tensor] = {}
        self.products: dict[tuple[Reading, Reading], Tensor] = {}
        for pair in self.pairs:
            for reading in (*pair.source.bases, pair.target):
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
        by_position = cells * (pair.source.channels + pair.target.width) + pair.source.seen
        return 2 * 8 * (products + by_position), 8 * 6 * pair.source.width**2

    @property
    def tensors(self) -> list[Tensor]:
        """All sums; processes add them up after `finish`."""
        return [self.count, *self.sums.values(), *self.squares.values(), *self.products.values()]

    def add(self, features: dict[tuple[Side, str], Tensor], held_out: Tensor) -> Reading | None:
        """Add a batch.

        Args:
            features: Raw features of N images by parent and node.
            held_out: ``(N,)`` on the processor, which of the images are held out.

        Returns:
            None, or the first reading that has NaN or infinite values; nothing is added then.
        """
        grids: dict[Reading, Tensor] = {}
        for reading in self.sums:
            feature = features[reading.side, reading.node]
            grids[reading] = reading.read(feature)
        for reading, finite in zip(grids, are_finite(list(grids.values())), strict=True):
            if not finite:
                return reading
        for part, images in ((FITTED, ~held_out), (HELD_OUT, held_out)):
            chosen = images.nonzero().flatten()
            if not len(chosen):
                continue
            rows = {grid.device: send(chosen, grid.device) for grid in grids.values()}
            some = {r: grid.index_select(0, rows[grid.device]) for r, grid in grids.items()}
            add = self._add if self._float64 else self._add_pairs
            add(part, some)
            self.count[part] += len(chosen)
        return None

    def clear(self) -> None:
        """Begin again."""
        for tensor in self.tensors:
            tensor.zero_()

    def finish(self) -> None:
        """All images were added: sums are float64 from now on."""
        if self._float64:
            return
        # what has no float64 leaves the rest to the processor
        for sums in (self.sums, self.squares, self.products):
            for key, (total, rest) in sums.items():
                total, rest = fetch([total, rest])
                sums[key] = total.double() + rest.double()  # type: ignore[index]
        for positions in self.positions.values():
            positions.to(CPU)

    def _samples(self, grids: Mapping[Reading, Tensor]) -> dict[Reading, Tensor]:
        """What is multiplied, ``(images · positions, width)``."""
        return {
            reading: reading.gather(
                self.positions[reading.size], [grids[base] for base in reading.bases]
            ).flatten(0, 1)
            for reading in dict.fromkeys(reading for pair in self.products for reading in pair)
        }

    def _add(self, part: int, grids: Mapping[Reading, Tensor]) -> None:
        for reading, total in self.sums.items():
            total[part] += grids[reading].sum(0, dtype=torch.float64)
        samples = {reading: some.double() for reading, some in self._samples(grids).items()}
        for reading, total in self.squares.items():
            total[part] += samples[reading].square().sum(0)
        for (one, other), total in self.products.items():
            product = _gram(samples[one]) if one == other else samples[one].T @ samples[other]
            total[part] += product

    def _add_pairs(self, part: int, grids: Mapping[Reading, Tensor]) -> None:
        """As `_add`, in float32 alone."""
        for reading, total in self.sums.items():
            for some in torch.split(grids[reading].float(), _ROWS):
                for piece in _cut(some):
                    _increase(total[:, part], piece.sum(0))
        samples = {reading: some.float() for reading, some in self._samples(grids).items()}
        for start in range(0, max(map(len, samples.values())), _ROWS):
            cut = {
                reading: _cut(rows[start : start + _ROWS])
                for reading, rows in samples.items()
                if start < len(rows)
            }
            for reading, square in self.squares.items():
                for term in _terms(cut.get(reading), cut.get(reading), torch.mul):
                    _increase(square[:, part], term.sum(0))
            for (one, other), product in self.products.items():
                for term in _terms(cut.get(one), cut.get(other), _transposed_product):
                    _increase(product[:, part], term)

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
        sums = [self.sums[base] / self.count[:, None, None, None] for base in reading.bases]
        return reading.gather(self.positions[reading.size], sums)


# The leading eight bits of numbers, the next eight, and the rest.
_Cut = tuple[Tensor, Tensor, Tensor]


def _cut(values: Tensor) -> _Cut:
    """Numbers cut in three, by the bits of each column's largest.

    Args:
        values: ``(N, ...)``, N at most `_ROWS`.
    """
    largest = values.abs().amax(0, keepdim=True).clamp_min(2.0**-100)
    # a number so large that what is added to it loses all but the leading bits
    large = 1.5 * 2.0**15 * torch.exp2(largest.log2().ceil())
    head = (values + large) - large
    rest = values - head
    large = large / 2**8
    middle = (rest + large) - large
    return head, middle, rest - middle


def _terms(
    one: _Cut | None, other: _Cut | None, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """Products of numbers cut in three, the largest first; all but the last without any error."""
    if one is None or other is None:
        return
    yield multiply(one[0], other[0])
    yield multiply(one[0], other[1])
    yield multiply(one[1], other[0])
    yield (
        multiply(one[1], other[1])
        + multiply(one[0], other[2])
        + multiply(one[2], other[0] + other[1] + other[2])
        + multiply(one[1], other[2])
    )


def _transposed_product(one: Tensor, other: Tensor) -> Tensor:
    return one.T @ other


def _increase(total: Tensor, term: Tensor) -> None:
    """Add to a sum, and what rounding takes from it to its second half.

    Args:
        total: ``(2, ...)``.
        term: ``(...)``.
    """
    before, rest = total
    after = before + term
    added = after - before
    rest += (before - (after - added)) + (term - added)
    before.copy_(after)


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
