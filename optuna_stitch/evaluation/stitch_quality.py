"""How much is lost when features cross once: the quality report of a fit, and what it prunes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import quality_metric
from optuna_stitch.stitching.fit import StitchFit
from optuna_stitch.stitching.genotype import (
    BOTH,
    SIDES,
    Genotype,
    Side,
    single_stitch_genotypes,
)
from optuna_stitch.stitching.supernetwork import Supernetwork


@dataclass(frozen=True)
class StitchQuality:
    """One stitch, and the network in which it alone is on.

    Args:
        switch: Name of its switch.
        into: The parent that it leads into, whose output the network returns.
        depth_a: Relative depth of its match in parent a, 0 to 1.
        depth_b: The same in parent b.
        r2: Share of the target's variance explained on held-out images, as it was fitted: tuning
            does not change it.
        ridge: The ridge strength chosen.
        kernel: Side of its kernel.
        rank: Its rank.
        stitch_macs: Multiply-accumulates per image of the stitch.
        macs: Multiply-accumulates per image of the network.
        quality: Accuracy of the network (mean IoU for segmentation).
        drop: The weaker parent's accuracy less that; of two jobs, that of the parent whose output
            it is.
        kept: Whether the search may use it.
    """

    switch: str
    into: Side
    depth_a: float
    depth_b: float
    r2: float
    ridge: float
    kernel: int
    rank: int
    stitch_macs: int
    macs: int
    quality: float
    drop: float
    kept: bool = True


def measure_stitches(
    supernetwork: Supernetwork,
    fits: Sequence[StitchFit],
    split: Split | SplitPair,
    *,
    show_progress_bar: bool = False,
) -> list[StitchQuality]:
    """Measure every single-stitch network of a fitted supernetwork.

    Of two jobs it is the answer of the parent that the stitch leads into, on that one's images;
    the multiply-accumulates are those of both answers.

    Args:
        supernetwork: The fitted supernetwork.
        fits: What its `fit` returned.
        split: A few hundred validation images.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per stitch, in the switches' order.
    """
    singles = single_stitch_genotypes(supernetwork.switches)
    genotypes = [*(Genotype(side) for side in SIDES), *singles]
    qualities: dict[Genotype, float] = {}
    for side in SIDES if isinstance(split, SplitPair) else (None,):
        metric = quality_metric(segments=supernetwork.supergraph.segments_of(side or "a"))
        images = split.of(side or "a") if isinstance(split, SplitPair) else split
        evaluator = Evaluator(supernetwork, images, [metric], side=side)
        own = [genotype for genotype in genotypes if side in (None, genotype.output)]
        subnetworks = [supernetwork.subnetwork(genotype) for genotype in own]
        found = evaluator.evaluate(subnetworks, show_progress_bar=show_progress_bar)
        qualities |= {g: entry[metric.name] for g, entry in zip(own, found, strict=True)}
    weaker = min(qualities[Genotype(side)] for side in SIDES)
    depths = {
        side: {point.node: point.depth for point in graph.points}
        for side, graph in supernetwork.graphs.items()
    }
    measured: list[StitchQuality] = []
    for switch, fitted, single in zip(supernetwork.switches, fits, singles, strict=True):
        answering = replace(single, output=BOTH) if supernetwork.two_jobs else single
        compared = qualities[Genotype(switch.into)] if supernetwork.two_jobs else weaker
        other: Side = "a" if switch.into == "b" else "b"
        depth = {
            switch.into: depths[switch.into][switch.target],
            other: depths[other][switch.source],
        }
        measured.append(
            StitchQuality(
                switch.name,
                switch.into,
                depth["a"],
                depth["b"],
                fitted.r2,
                fitted.ridge,
                fitted.kernel,
                fitted.rank,
                fitted.macs,
                supernetwork.subnetwork(answering).macs,
                qualities[single],
                compared - qualities[single],
            )
        )
    return measured


def best_stitches(
    stitch_qualities: Sequence[StitchQuality],
    *,
    best: int | None = None,
    min_r2: float | None = None,
    max_accuracy_drop: float | None = None,
) -> list[int]:
    """Choose the stitches that are worth searching.

    Args:
        stitch_qualities: What `measure_stitches` returned.
        best: How many to keep at most, by the accuracy of their single-stitch networks.
        min_r2: Least R² to keep one.
        max_accuracy_drop: Largest loss against the weaker parent, from 0 to 1; of two jobs,
            against the parent that the stitch leads into.

    Returns:
        Indices of the switches to keep, ascending; for `Supernetwork.keep`.
    """
    chosen = [
        index
        for index, stitch_quality in enumerate(stitch_qualities)
        if (min_r2 is None or stitch_quality.r2 >= min_r2)
        and (max_accuracy_drop is None or stitch_quality.drop <= max_accuracy_drop)
    ]
    chosen.sort(key=lambda index: stitch_qualities[index].drop)
    return sorted(chosen[:best])
