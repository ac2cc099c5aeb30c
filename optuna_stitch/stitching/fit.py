"""Fit every stitch in closed form, in one pass over unlabelled images.

A stitch has to reproduce the target's own feature from the raw source feature. With the parents
frozen that is linear least squares, whose optimum needs only sums over positions: the pass streams
them for all stitches in both directions at once, then each is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from optuna_stitch.data.splits import Split
from optuna_stitch.models.layouts import Layout
from optuna_stitch.stitching.genotype import Switch
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.stitching.moments import EVERY, Moments, Pair, Reading
from optuna_stitch.stitching.recalibration import Calibration
from optuna_stitch.stitching.regression import Choices, Regression, Solution
from optuna_stitch.stitching.settings import FitSettings
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils import distributed
from optuna_stitch.utils.device import float32_products, free_memory
from optuna_stitch.utils.errors import FitError
from optuna_stitch.utils.memory import is_out_of_memory
from optuna_stitch.utils.progress import console, progress_bar

GIB = 1 << 30

# Neighbourhoods are read only where they have at most this many columns: the normal equations
# grow with its square, their solution with its cube.
_WIDEST = 1200

# Where the positions of a finer grid are channels, neighbours are read up to here: they add less.
_WIDEST_FOLDED = 600

# Beyond these, more positions of the same images hardly change a fit.
_SAMPLES, _FEWEST_POSITIONS = 12_000, 16

# All features that a pass reads are held at once, for so many images as keep within this.
_FEATURE_BYTES = GIB // 2

# GiB for sums on a processor, and their share of the free memory of an accelerator.
_MEMORY, _SHARE = 2.0, 1 / 2

# A bias for every position holds at most this many numbers.
_LARGEST_BIAS = 1 << 18


@dataclass(frozen=True)
class StitchFit:
    """How well one stitch was fitted.

    Args:
        switch: Name of its switch.
        r2: Share of the target's variance explained on held-out images, before the variance was
            matched.
        ridge: The ridge strength chosen, relative to the mean variance of the source's columns.
        kernel: Side of its kernel.
        rank: Its rank.
        macs: Multiply-accumulates per image.
    """

    switch: str
    r2: float
    ridge: float
    kernel: int
    rank: int
    macs: int


def fit_stitches(
    supergraph: Supergraph,
    split: Split,
    settings: FitSettings,
    *,
    show_progress_bar: bool = False,
) -> tuple[list[Stitch], list[StitchFit], Calibration | None]:
    """Fit all stitches of a supernetwork; see `Supernetwork.fit`.

    Ridge regression with a strength chosen per stitch on held-out images. Ridge shrinks the
    variance of what it predicts; ``match_variance`` restores it: every output channel's deviation
    from its mean is scaled to the target's own variance.

    Args:
        supergraph: The computation of the supernetwork whose stitches to fit.
        split: Unlabelled images; the train split, so that the search's images stay unseen.
        settings: How.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        The fitted stitches and what is known of each, in the switches' order, and the images for
        BatchNorm statistics, if there are to be some.

    Raises:
        FitError: If there are too few images, features are not finite, or the memory does not
            hold the sums of a single stitch.
    """
    taken = split.take(settings.images)
    if len(taken) < 2 * EVERY:
        raise FitError(
            f"{len(taken)} images are too few to fit stitches; give at least {2 * EVERY}."
        )
    positions = settings.positions or max(_FEWEST_POSITIONS, _SAMPLES // len(taken))
    jobs = _jobs(supergraph, settings)
    memory = settings.memory or _memory_on(supergraph.device)
    groups = _groups(jobs, memory)
    if len(groups) > 1:
        console.print(
            f"The sums of {len(jobs)} stitches take more than {memory:.3g} GiB: fitting "
            f"them in {len(groups)} passes over the images.",
            soft_wrap=True,
        )
    batch_size = settings.batch_size or supergraph.batch_size
    fitted: list[Stitch] = []
    fits: list[StitchFit] = []

    def fit(group: Sequence[_Job], note: str) -> list[tuple[Stitch, StitchFit]]:
        pairs = [pair for job in group for pair, _ in job.maps]
        moments = Moments(dict.fromkeys(pairs), positions, settings.seed, supergraph.device)
        task = progress.add_task("Read features", total=len(taken), note=note)
        for count in _read(supergraph, taken, moments, group, batch_size):
            progress.advance(task, count)
        task = progress.add_task("Fit stitches", total=len(group), note=note)
        found: list[tuple[Stitch, StitchFit]] = []
        for job in group:
            solutions = job.solve(moments)
            made = job.make(solutions).to(supergraph.device)
            found.append((made, _report(job, made, solutions[0])))
            progress.advance(task)
        return found

    with (
        torch.no_grad(),
        float32_products(supergraph.device, exact=True),
        progress_bar(show_progress_bar=show_progress_bar) as progress,
    ):
        for number, group in enumerate(groups, start=1):
            note = f"pass {number} of {len(groups)}" if len(groups) > 1 else ""
            for stitch, said in _in_parts(fit, group, note):
                fitted.append(stitch)
                fits.append(said)
    images = settings.recalibrate
    calibration = (
        Calibration.of(taken.take(images), supergraph.views, batch_size, supergraph.device)
        if images
        else None
    )
    return fitted, fits, calibration


def _in_parts(
    fit: Callable[[Sequence[_Job], str], list[tuple[Stitch, StitchFit]]],
    group: Sequence[_Job],
    note: str,
) -> list[tuple[Stitch, StitchFit]]:
    """Fit a group of stitches, or its halves where memory runs out, with a pass for each."""
    try:
        return fit(group, note)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(group) == 1 or distributed.world_size() > 1:
            raise FitError(
                f"Memory does not suffice to fit the stitch {group[0].switch.name!r}"
                f"{' and others' if len(group) > 1 else ''}. Make room on the device, or fit with "
                "a smaller `memory`, fewer `positions` or `kernel: 1`."
            ) from error
    half = len(group) // 2
    console.print(f"Memory ran out: going on with {half} stitches, or fewer, a pass.")
    return [found for part in (group[:half], group[half:]) for found in _in_parts(fit, part, note)]


def _jobs(supergraph: Supergraph, settings: FitSettings) -> list[_Job]:
    """What is to be fitted, in the switches' order."""
    cheaper = min(graph.macs for graph in supergraph.graphs.values())
    allowed = None if settings.budget is None else int(settings.budget * cheaper)
    choices = Choices(
        (1,), settings.rank_loss, None, settings.by_position, settings.match_variance
    )
    return [
        _Job.of(
            switch,
            stitch,
            settings.kernel,
            allowed,
            choices,
            fold=settings.fold,
            context=settings.context,
        )
        for switch, stitch in zip(supergraph.switches, supergraph.stitches, strict=True)
    ]


@dataclass(frozen=True)
class _Job:
    """One stitch to be fitted: the linear maps it consists of, and what each may choose.

    Args:
        switch: Its switch.
        source: Layout of what it reads.
        target: Layout of what it writes.
        grids: The map of the grid, in ways of which the best is taken.
        prefix: The maps of the prefix tokens.
    """

    switch: Switch
    source: Layout
    target: Layout
    grids: list[tuple[Pair, Choices]]
    prefix: list[tuple[Pair, Choices]]

    @property
    def maps(self) -> list[tuple[Pair, Choices]]:
        """All that may be fitted."""
        return [*self.grids, *self.prefix]

    def solve(self, moments: Moments) -> list[Solution]:
        """The map of the grid, and those of the prefix tokens.

        Args:
            moments: Sums that have its pairs.
        """
        grids = [Regression(moments, pair).solve(own) for pair, own in self.grids]
        best = min(grids, key=lambda solution: solution.error)
        return [best, *(Regression(moments, pair).solve(own) for pair, own in self.prefix)]

    @staticmethod
    def of(
        switch: Switch,
        stitch: Stitch,
        kernel: int,
        allowed: int | None,
        choices: Choices,
        *,
        fold: bool = True,
        context: Literal["auto"] | bool = "auto",
    ) -> _Job:
        source, target, size = stitch.source, stitch.target, stitch.grid
        if context == "auto":
            context = "NLC" in (source.kind, target.kind)
        cells = size[0] * size[1]
        read = Reading(switch.out_of, switch.source, source, "grid", size)
        wanted = Reading(switch.into, switch.target, target, "grid", size)
        down, up = (fold and times > 1 for times in stitch.times)
        wanted = replace(wanted, folded=up)
        if wanted.width > _WIDEST:
            wanted = replace(wanted, folded=False)
        own = replace(
            choices,
            largest=None if allowed is None else max(1, allowed // cells),
            everywhere=choices.everywhere and cells * wanted.width <= _LARGEST_BIAS,
        )
        if cells == 1:
            kernel, context = 1, False
        grids: list[tuple[Pair, Choices]] = []
        for folded in (True, False) if down else (False,):
            way = replace(read, folded=folded, kernel=kernel)
            if way.width > (_WIDEST_FOLDED if folded else _WIDEST):
                way = way.base
            if folded and way.width > _WIDEST:
                continue
            wider = replace(way, context=context)
            if wider.width <= _WIDEST:
                way = wider
            kernels = tuple(dict.fromkeys((1, way.kernel)))
            grids.append((Pair(way, wanted), replace(own, kernels=kernels)))
            if way.kernel == kernel:
                break  # averages are sums of what it reads
        plain = Choices((1,), None, None, False, choices.match_variance)
        prefix = [
            Pair(
                Reading(switch.out_of, switch.source, source, part, (1, 1)),
                Reading(switch.into, switch.target, target, place, (1, 1)),
            )
            for place, part in enumerate(stitch.prefix_parts)
        ]
        return _Job(switch, source, target, grids, [(pair, plain) for pair in prefix])

    @property
    def bytes(self) -> tuple[int, int]:
        """Memory that its sums take, and that solving it takes for a while."""
        sums, solving = zip(*(Moments.bytes_of(pair) for pair, _ in self.maps), strict=True)
        return sum(sums), max(solving)

    def make(self, solutions: Sequence[Solution]) -> Stitch:
        """The stitch that the solutions of its maps make up."""
        grid, *prefix = solutions
        stitch = Stitch(
            self.source,
            self.target,
            kernel=grid.kernel,
            rank=grid.rank,
            everywhere=grid.bias[0].numel() > 1,
            folded=grid.folded,
            context=grid.context is not None,
        )
        stitch.weight.copy_(grid.weight.reshape(stitch.weight.shape))
        stitch.bias.copy_(grid.bias)
        if stitch.expand is not None and grid.expand is not None:
            stitch.expand.copy_(grid.expand)
        if stitch.context_weight is not None and grid.context is not None:
            stitch.context_weight.copy_(grid.context)
        for place, solution in enumerate(prefix):
            stitch.prefix_weight[place].copy_(solution.weight)
            stitch.prefix_bias[place].copy_(solution.bias.flatten())
        return stitch


def _report(job: _Job, stitch: Stitch, solution: Solution) -> StitchFit:
    rank = solution.rank or min(solution.weight.shape)
    return StitchFit(
        job.switch.name, solution.r2, solution.ridge, solution.kernel, rank, stitch.macs
    )


def _memory_on(device: torch.device) -> float:
    """GiB for sums where it is not said."""
    free = free_memory(device)
    return _MEMORY if free is None else _SHARE * free / GIB


def _groups(jobs: Sequence[_Job], memory: float) -> list[list[_Job]]:
    """Cut the stitches into runs whose sums keep within the memory."""
    groups: list[list[_Job]] = [[]]
    allowed = int(memory * GIB)
    left = allowed - max((job.bytes[1] for job in jobs), default=0)
    free = left
    for job in jobs:
        sums, solving = job.bytes
        if sums > left:
            raise FitError(
                f"The stitch {job.switch.name!r} needs {(sums + solving) / GIB:.3f} GiB to be "
                f"fitted, more than the {memory:g} GiB allowed; raise `memory`."
            )
        if sums > free:
            groups.append([])
            free = left
        groups[-1].append(job)
        free -= sums
    return groups


def _read(
    supergraph: Supergraph,
    split: Split,
    moments: Moments,
    group: Sequence[_Job],
    batch_size: int,
) -> Iterator[int]:
    """Add this process's share of the images to the moments; yields how many were read."""
    wanted = list(dict.fromkeys((reading.side, reading.node) for reading in moments.sums))
    features = supergraph.parents_program(wanted)
    layouts = {(reading.side, reading.node): reading.layout for reading in moments.sums}
    image = sum(4 * layout.channels * layout.positions for layout in layouts.values())
    rank, world_size = distributed.rank(), distributed.world_size()
    # each process shall have some
    batch_size = min(batch_size, _FEATURE_BYTES // image, -(-len(split) // world_size))
    batch_size = at_once = max(1, batch_size)
    device = supergraph.device
    shard = (rank, world_size)
    done, is_done = 0, False
    while not is_done:
        start = rank * batch_size
        try:
            for batch in split.batches(supergraph.views, batch_size, shard=shard, device=device):
                for first in range(0, len(batch), at_once):
                    part = slice(first, first + at_once)
                    values: list[Tensor] = features.run([view[part] for view in batch.images])
                    places = torch.arange(start + first, start + first + len(values[0]))
                    broken = moments.add(
                        dict(zip(wanted, values, strict=True)), places % EVERY == EVERY - 1
                    )
                    if broken is not None:
                        raise _not_finite(broken, group)
                start += world_size * batch_size
                done += len(batch)
                yield len(batch)
            is_done = True
        except (RuntimeError, MemoryError) as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        if not is_done:  # of a batch some sums may have been added, and others not
            moments.clear()
            at_once //= 2
            console.print(f"Memory ran out: going on with {at_once} images at once.")
            yield -done
            done = 0
    moments.finish()
    distributed.all_reduce(moments.tensors)


def _not_finite(broken: Reading, group: Sequence[_Job]) -> FitError:
    name = next(
        job.switch.name
        for job in group
        if broken
        in {b for pair, _ in job.maps for r in (pair.source, pair.target) for b in r.bases}
    )
    return FitError(
        f"The features of stitch {name!r} hold NaN or infinite values (in parent "
        f"{broken.side}, at {broken.node}); check its weights and the images."
    )
