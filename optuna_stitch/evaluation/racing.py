"""Stop judging a subnetwork once it is clear that it cannot join the front.

Images come in blocks, in a random order. After each block a subnetwork is compared, on the images
so far, with its rival: of the subnetworks judged on all images, the best that costs no more. If it
got fewer of them right by more than chance explains, it is dominated, and stops.

The comparison is the one-sided sign test on images that exactly one of the two gets right (the
exact form of McNemar's). Given their number n, and if the subnetwork were no worse than its rival
on all images of the split, the number that it gets right would follow a hypergeometric law with at
least half of the images in its favour, whose lower tail that of Binomial(n, 1/2) bounds (Uhlmann,
"Vergleich der hypergeometrischen mit der Binomial-Verteilung", Metrika 10, 1966). The rival is
chosen before the subnetwork is run, and the error rate is divided among the looks (Bonferroni), so
that a subnetwork that a full evaluation would have put beside or above its rival is stopped with
at most that probability, over the random order of the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom
from torch import Tensor

from optuna_stitch.evaluation.settings import Racing


@dataclass(frozen=True)
class Rival:
    """A subnetwork judged on all images.

    Args:
        costs: What it costs; less is better.
        outcomes: Whether it is right, by image, ``(N,)`` bool.
        is_cascade: Whether its costs are averages.
    """

    costs: tuple[float, ...]
    outcomes: Tensor
    is_cascade: bool = False

    @property
    def quality(self) -> float:
        """Share of images that it gets right."""
        return int(self.outcomes.sum()) / len(self.outcomes)


class Race:
    """The subnetworks to beat.

    Args:
        racing: How the race is run.
        metric: What says right or wrong of every image.
        images: Number of images in the split.
        batch_size: Images per batch.

    Attributes:
        metric: As given.
        order: The images' positions in the order in which they are run.
        blocks: After how many images subnetworks are compared.
    """

    def __init__(self, racing: Racing, metric: str, images: int, batch_size: int) -> None:
        self.metric = metric
        self.order: list[int] = np.random.default_rng(racing.seed).permutation(images).tolist()
        self.blocks = _blocks(racing, images, batch_size)
        self._level = racing.error_rate / max(len(self.blocks) - 1, 1)
        self._front: list[Rival] = []

    def join(self, rival: Rival) -> None:
        """Add a subnetwork that was judged on all images.

        Args:
            rival: The subnetwork.
        """
        if any(_is_beaten(rival, by=other) for other in self._front):
            return
        self._front = [other for other in self._front if not _is_beaten(other, by=rival)]
        self._front.append(rival)

    def rival(self, costs: Sequence[float], *, is_cascade: bool = False) -> Rival | None:
        """The best of those that cost no more; None if there is none.

        A network that costs the same for every image is not held to cascades: where nothing can
        be skipped, they are no alternative to it.

        Args:
            costs: What a subnetwork costs, in the order of `Rival.costs`.
            is_cascade: Whether these are averages.
        """
        affordable = [
            rival
            for rival in self._front
            if _covers(rival.costs, costs) and (is_cascade or not rival.is_cascade)
        ]
        return max(affordable, key=lambda rival: rival.quality, default=None)

    def lost(self, outcomes: Tensor, rival: Rival) -> bool:
        """Whether a subnetwork is worse than its rival beyond doubt.

        Args:
            outcomes: Whether it is right on the first images of `order`, ``(n,)`` bool.
            rival: Chosen before it was run.
        """
        theirs = rival.outcomes[self.order[: len(outcomes)]]
        wins = int((outcomes & ~theirs).sum())
        losses = int((theirs & ~outcomes).sum())
        return wins < losses and bool(binom.cdf(wins, wins + losses, 0.5) <= self._level)

    def estimate(self, outcomes: Tensor, rival: Rival) -> float:
        """The quality on all images, from the difference to the rival on the first ones.

        Unlike the share of right answers so far, it does not depend on whether the first images
        happen to be easy, and a subnetwork that lost never looks better than its rival.

        Args:
            outcomes: As for `lost`.
            rival: The same.
        """
        theirs = rival.outcomes[self.order[: len(outcomes)]]
        difference = (int(outcomes.sum()) - int(theirs.sum())) / len(outcomes)
        return max(0.0, rival.quality + difference)

    def parts(self) -> Iterator[list[int]]:
        """The images' positions, block by block."""
        for start, stop in itertools.pairwise([0, *self.blocks]):
            yield self.order[start:stop]


def _is_beaten(rival: Rival, by: Rival) -> bool:
    return (
        _covers(by.costs, rival.costs)
        and by.quality >= rival.quality
        and (rival.is_cascade or not by.is_cascade)
    )


def _covers(costs: Sequence[float], others: Sequence[float]) -> bool:
    return all(cost <= other for cost, other in zip(costs, others, strict=True))


def _blocks(racing: Racing, images: int, batch_size: int) -> list[int]:
    """Where blocks end, in whole batches; the last at ``images``."""
    ends: list[int] = []
    wanted = float(racing.first)
    while wanted < images:
        end = batch_size * int(np.ceil(wanted / batch_size))
        if end < images and end not in ends:
            ends.append(end)
        wanted *= racing.growth
    return [*ends, images]
