"""Whom to mix with whom: a population that stays diverse, the front, and niches of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .ranking import Losses, Places, best_places, crowding, normalized, tchebycheff


class Population:
    """The first settings that were judged, each replaced by better ones that are like it.

    What is new competes with the member it differs least from (restricted tournament replacement:
    Harik, "Finding multimodal solutions using restricted tournament selection", 1995), so that
    parts of solutions are not lost to the offspring of the best. It follows from the order of the
    trials alone.

    Args:
        archive: All settings that were judged.
        size: How many members.
    """

    def __init__(self, archive: Archive, size: int) -> None:
        self.archive = archive
        self.size = size
        self.members: list[int] = []
        self._seen = 0
        self._changes = archive.changes

    def update(self) -> None:
        """Let in what was judged since."""
        archive = self.archive
        if archive.changes != self._changes:  # what was better may not be so any more
            self.members, self._seen, self._changes = [], 0, archive.changes
        for place in range(self._seen, len(archive)):
            if len(self.members) < self.size:
                self.members.append(place)
                continue
            rows = archive.rows[self.members]
            nearest = int(archive.space.distances(rows, archive.rows[place]).argmin())
            if self._replaces(place, self.members[nearest]):
                self.members[nearest] = place
        self._seen = len(archive)

    def _replaces(self, new: int, old: int) -> bool:
        """Whether it is better, or nobody beats it while the old one is beaten."""
        amounts, losses = self.archive.violations, self.archive.losses
        if amounts[new] != amounts[old]:
            return bool(amounts[new] < amounts[old])
        if (losses[new] <= losses[old]).all():
            return True
        if (losses[old] <= losses[new]).all():
            return False
        allowed = np.array([m for m in self.members if amounts[m] <= amounts[new]])
        return not _beaten(losses[allowed], losses[new]) and _beaten(losses[allowed], losses[old])

    def pool(self) -> tuple[Places, Places]:
        """The front, thinned to the population's size where it is larger, and all to mix."""
        front = best_places(self.archive.losses, self.archive.violations, 1)[0]
        if len(front) > self.size:
            apart = crowding(self.archive.losses[front])
            front = front[np.argsort(-apart, kind="stable")[: self.size]]
        return front, np.union1d(front, np.array(self.members, np.int64))


def _beaten(losses: Losses, own: NDArray[np.float64]) -> bool:
    return bool(((losses <= own).all(axis=1) & (losses < own).any(axis=1)).any())


@dataclass
class Niche:
    """Solutions with like values, and what counts as better among them.

    Args:
        members: Places in the archive.
        weights: Of the objectives, ``(m,)``; a single one at the ends of the front.
        scale: The values that are 0 and 1 to the scalarization, ``(2, m)``.
    """

    members: Places
    weights: NDArray[np.float64]
    scale: Losses

    def badness(self, archive: Archive, places: Places) -> NDArray[np.float64]:
        """One number for each, to be minimized; what violates constraints comes last."""
        low, high = self.scale
        width = np.where(high > low, high - low, 1.0)
        with np.errstate(invalid="ignore"):
            losses = np.nan_to_num(archive.losses[places], posinf=1e300, neginf=-1e300) - low
            scalar = tchebycheff(np.clip(losses / width, -1e3, 1e3), self.weights)
        amounts = archive.violations[places]
        return np.where(amounts > 0, 1e6 * (1 + amounts), scalar)


def draw_niche(archive: Archive, members: Places, count: int, rng: np.random.Generator) -> Niche:
    """One of several niches, which overlap: the ends of every objective, and between them.

    Leaders are spread as far as they go, beginning with the best of every objective; a niche holds
    the nearest to its leader, twice its even share, as in Luong et al., "Multi-objective
    gene-pool optimal mixing evolutionary algorithms", 2014.

    Args:
        archive: Of the members.
        members: Whom to divide.
        count: How many niches.
        rng: Picks one.
    """
    losses = archive.losses[members]
    objectives = losses.shape[1]
    finite = np.nan_to_num(losses, posinf=1e300, neginf=-1e300)
    scale = np.stack([finite.min(axis=0), finite.max(axis=0)])
    if objectives == 1 or len(members) <= 2:
        return Niche(members, np.full(objectives, 1 / objectives), scale)
    places = normalized(losses)
    picked = int(rng.integers(max(count, objectives)))
    leaders: list[int] = []
    for objective in range(objectives):  # the best of each, by the others where it is tied
        leaders.append(int(np.lexsort((places.sum(axis=1), places[:, objective]))[0]))
    gap = np.min([_apart(places, places[leader]) for leader in leaders], axis=0)
    while len(leaders) <= picked:
        leaders.append(int(gap.argmax()))
        gap = np.minimum(gap, _apart(places, places[leaders[-1]]))
    size = max(2, -(-2 * len(members) // max(count, objectives)))
    own = np.argsort(_apart(places, places[leaders[picked]]), kind="stable")[:size]
    if picked < objectives:
        weights = np.eye(objectives)[picked]
    else:  # whose contours have their corner at the leader
        weights = 1 / (places[leaders[picked]] + 0.05)
        weights /= weights.sum()
    return Niche(members[own], weights, scale)


def _apart(places: Losses, own: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(((places - own) ** 2).sum(axis=1)))
