"""Linear probes: what one gets for the second question without its network.

One parent is whole, and the answers of the other come by ridge regression from one of its
features. They are fitted to the other parent's logits, on the same unlabelled images as stitches
and by the same means: a probe is a stitch that ends in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.layouts import Layout
from optuna_stitch.models.points import Point
from optuna_stitch.stitching.genotype import BOTH, SIDES, Genotype, Side
from optuna_stitch.stitching.matching import Match, select_points
from optuna_stitch.stitching.settings import FitSettings
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork

# Layers of a parent that are tried, at most.
_TRIED = 16

# The plain regression: full rank, its strength chosen on held-out images, nothing rescaled.
_RIDGE = FitSettings(
    kernel=1,
    rank_loss=None,
    budget=None,
    match_variance=False,
    by_position=False,
    fold=False,
    context=False,
    recalibrate=0,
)


@dataclass(frozen=True)
class Probe:
    """One parent whole, and the other's answers from one of its features.

    Args:
        host: The parent that is whole.
        point: Name of the feature.
        is_last: Whether it is the host's last feature.
        r2: Share of the variance of the other's logits explained on held-out train images.
        supernetwork: One with this probe for its only stitch.
    """

    host: Side
    point: str
    is_last: bool
    r2: float
    supernetwork: Supernetwork

    @property
    def subnetwork(self) -> Subnetwork:
        """The network that answers both questions."""
        return self.supernetwork.subnetwork(Genotype(BOTH, frozenset([0])))

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"probe on {self.host}" + ("" if self.is_last else ", best layer")

    @property
    def recipe(self) -> str:
        """How it answers."""
        other = "b" if self.host == "a" else "a"
        return (
            f"{self.host} whole, and {other}'s answers by ridge regression from "
            f"{self.host}.{self.point} (R² {self.r2:.2f} on held-out train images)"
        )


def fit_probes(
    supernetwork: Supernetwork, split: SplitPair, *, images: int | None = None
) -> list[Probe]:
    """Fit linear probes on both parents.

    Args:
        supernetwork: With the parents, which have two jobs.
        split: Unlabelled images; the train split.
        images: How many of them to use; all, if None.

    Returns:
        Of each parent the probe on its last feature and, where that is another one, the one that
        is best on held-out train images.

    Raises:
        FitError: As `Supernetwork.fit` says.
    """
    graphs = supernetwork.graphs
    answers = {side: _answer_of(graphs[side], supernetwork, side) for side in SIDES}
    read = [(side, point) for side in SIDES for point in _tried(graphs[side])]
    matches = [
        Match(point, answers["b"]) if host == "a" else Match(answers["a"], point)
        for host, point in read
    ]
    kept = [2 * place + (host == "b") for place, (host, _) in enumerate(read)]
    probing = Supernetwork(supernetwork.a, supernetwork.b, graphs, matches, kept, two_jobs=True)
    fits = probing.fit(split, _RIDGE.model_copy(update={"images": images}))
    found: list[Probe] = []
    for host in SIDES:
        own = [place for place, (side, _) in enumerate(read) if side == host]
        best = max(own, key=lambda place: fits[place].r2)
        for place in dict.fromkeys([own[-1], best]):
            name, r2 = read[place][1].name, fits[place].r2
            # each by itself: of several that end in one answer only one could be on
            found.append(Probe(host, name, place == own[-1], r2, probing.keep([place])))
    return found


def _tried(graph: NetworkGraph) -> Sequence[Point]:
    """Features that a probe may read, evenly over the depth, the last one last."""
    points = select_points(graph, "dominators") or graph.points
    if points[-1] != graph.points[-1]:
        points = (*points, graph.points[-1])
    count = min(len(points), _TRIED)
    steps = max(count - 1, 1)
    places = sorted({round(step * (len(points) - 1) / steps) for step in range(count)})
    return [points[place] for place in places] if count > 1 else points


def _answer_of(graph: NetworkGraph, supernetwork: Supernetwork, side: Side) -> Point:
    """A parent's answer as the end of a stitch."""
    classes, *size = supernetwork.supergraph.shape_of(side)
    layout = Layout("NCHW", classes, (size[0], size[1])) if size else Layout("NC", classes, (1, 1))
    return Point(graph.output.name, "answer", layout, 1.0, block=False, dominator=True)
