"""Linkage learning: what belongs together is learnt, and exchanged together."""

from __future__ import annotations

import numpy as np

from .archive import Archive, Key
from .base import ArchiveSampler, neighbour
from .population import Niche, Population, draw_niche
from .ranking import Places
from .space import Row
from .tree import linkage_tree, mutual_information

_STEPS = 200  # settings looked at for one proposal


class LinkageSampler(ArchiveSampler):
    """Multi-objective gene-pool optimal mixing, for any number of workers.

    What values of parameters go together among good solutions is learnt as a linkage tree, from
    their normalized mutual information. A solution is then mixed: subset by subset of the tree, it
    takes the values of a random donor, and keeps them where that is no worse. Each trial is one
    such step. Donors come from the same niche of the front, which says what is worse: by a
    weighted Tchebycheff scalarization, or by one objective alone at the front's ends. Where no
    donor of the niche brings anything new, its best is the donor (forced improvements), and then
    single parameters change.

    The method is that of Luong, La Poutré and Bosman, "Multi-objective gene-pool optimal mixing
    evolutionary algorithms", 2014; that each solution learns from its nearest neighbours, of
    Guijt, Thierens, Alderliesten and Bosman, "Solving multi-structured problems by introducing
    linkage kernels into GOMEA", 2022. It differs where trials are few and judged by many workers:

    - There are no generations. A pass over the tree goes on through all settings that are known,
      by trials of whatever worker, and stops at the first that is not: that is the proposal.
      Settings that are being judged are taken; nobody waits for them.
    - The population is the first trials there are; later ones replace those that are most like
      them, and the front is mixed too. So it starts from enqueued trials as from any.
    - Only the better half of a niche learns, gives and receives.

    Args:
        population_size: How many solutions are mixed, beside the front. More are needed where
            larger groups of parameters must be found together, and cost more trials.
        niches: How many parts of the front are treated apart.
        kernel: Whether each solution learns from those that are most like it.
        neighbours: From how many; if None, twice the root of the population's size.
        mutation: Probability that a proposal changes one parameter of the front instead.
        seed: With the same seed and the same trials, the same is proposed; if None, chance.
        key: Says of two settings whether they are the same: equal keys. If None, every setting
            is different. What it returns must be hashable. Mixing goes on through changes that
            make no difference.
        n_startup_trials: How many trials there are, enqueued ones included, before proposals are
            more than random.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> study = optuna.create_study(directions=["maximize", "minimize"],
        ...                             sampler=LinkageSampler(seed=0))
    """

    _kept = ("_population_size", "_niches", "_kernel", "_neighbours", "_mutation")

    def __init__(
        self,
        *,
        population_size: int = 64,
        niches: int = 5,
        kernel: bool = True,
        neighbours: int | None = None,
        mutation: float = 0.3,
        seed: int | None = None,
        key: Key | None = None,
        n_startup_trials: int = 20,
    ) -> None:
        super().__init__(seed=seed, key=key, n_startup_trials=n_startup_trials)
        if population_size < 2:
            raise ValueError("`population_size` must be at least 2.")
        if niches < 1:
            raise ValueError("`niches` must be at least 1.")
        if not 0 <= mutation <= 1:
            raise ValueError("`mutation` must be between 0 and 1.")
        if neighbours is not None and neighbours < 2:
            raise ValueError("`neighbours` must be at least 2.")
        self._population_size = population_size
        self._niches = niches
        self._kernel = kernel
        self._neighbours = neighbours or max(4, round(2 * population_size**0.5))
        self._mutation = mutation

    def _forget(self) -> None:
        super()._forget()
        self._population: Population | None = None

    def _propose(self, archive: Archive, rng: np.random.Generator) -> Row | None:
        if not len(archive):
            return neighbour(archive, rng.permutation(archive.running), rng)
        if self._population is None or self._population.archive is not archive:
            self._population = Population(archive, self._population_size)
        self._population.update()
        front, members = self._population.pool()
        niche = draw_niche(archive, members, self._niches, rng)
        # The better half alone learns, gives and receives: what is known of the worse is why.
        order = np.argsort(niche.badness(archive, niche.members), kind="stable")
        better = niche.members[order[: max(2, len(order) // 2)]]
        found = None
        if rng.random() >= self._mutation:
            found = self._mixed(archive, niche, better, int(rng.choice(better)), rng)
        if found is None:
            own = np.intersect1d(better, front)
            groups = [rng.permutation(group) for group in (own, front, better)]
            found = neighbour(archive, archive.rows[np.concatenate(groups)], rng)
        return found

    def _mixed(
        self,
        archive: Archive,
        niche: Niche,
        better: Places,
        receiver: int,
        rng: np.random.Generator,
    ) -> Row | None:
        """Copy subsets from donors, one after the other, up to a setting that nobody asked for.

        Where the mixed setting is known already, it is accepted or not by what is known; where it
        is the same as before by its key, mixing goes on from it. So a pass over the tree goes on
        from trial to trial, without a note of where it was.
        """
        row: Row = archive.rows[receiver].copy()
        key = archive.key(row)
        own = float(niche.badness(archive, np.array([receiver]))[0])
        donors = archive.rows[better]
        subsets = self._linkage(archive, better, row, rng)
        steps = 0
        for donate in (donors, donors[:1]):  # the second time from the best: forced improvement
            for subset in subsets:
                differ = donate[(donate[:, subset] != row[subset]).any(axis=1)]
                if not len(differ):
                    continue
                steps += 1
                if steps > _STEPS:
                    return None
                child: Row = row.copy()
                child[subset] = differ[rng.integers(len(differ))][subset]
                name = archive.key(child)
                place = archive.place(name)
                if name == key:
                    row = child
                elif place is not None:
                    other = float(niche.badness(archive, np.array([place]))[0])
                    if other <= own:
                        row, key, own = child, name, other
                elif not archive.taken(name):
                    return child
        return None

    def _linkage(
        self, archive: Archive, better: Places, row: Row, rng: np.random.Generator
    ) -> list[Places]:
        """What to exchange together: the tree's subsets in random order, single ones last.

        Single parameters are what mutation is for.
        """
        if self._kernel and len(better) > self._neighbours:
            near = archive.space.distances(archive.rows[better], row)
            better = better[np.argsort(near, kind="stable")[: self._neighbours]]
        rows = archive.rows[better]
        # In random order, since the tree would join equally similar ones by their place.
        vary = rng.permutation(np.flatnonzero((rows != rows[0]).any(axis=0)))
        if len(vary) < 2:
            return [vary] if len(vary) else []
        settings = archive.space.bins(rows)[:, vary]
        similarity = mutual_information(settings, archive.space.choices[vary])
        subsets = [vary[subset] for subset in linkage_tree(similarity)]
        single, several = subsets[: len(vary)], subsets[len(vary) :]
        return [several[number] for number in rng.permutation(len(several))] + single
