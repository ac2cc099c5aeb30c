from __future__ import annotations

from optuna_stitch.evaluation.stitch_quality import (
    StitchQuality,
    bytes_of,
    stitches_within,
)
from tests.helpers.networks import small_trio


def test_stitches_are_chosen_within_a_share_of_the_parents_memory() -> None:
    supernetwork = small_trio(widths=(16, 24, 32))
    depths = {s: {p.node: p.depth for p in g.points} for s, g in supernetwork.graphs.items()}
    qualities = []
    for place, switch in enumerate(supernetwork.switches):
        ends = {switch.into: switch.target, switch.out_of: switch.source}
        a, b = (depths[side][ends[side]] for side in sorted(ends))
        drop = 0.03 * (place % 5)
        qualities.append(
            StitchQuality(switch.name, switch.into, a, b, 1, 1, 1, 1, 1, 1, 0.9 - drop, drop)
        )
    every = range(len(qualities))
    parents = bytes_of(graph.module for graph in supernetwork.graphs.values())
    sizes = [bytes_of([stitch]) for stitch in supernetwork.stitches]
    for share in (0.3, 0.6):
        kept = stitches_within(supernetwork, qualities, every, share)
        assert kept == sorted(set(kept))
        assert 0 < sum(sizes[place] for place in kept) <= share * parents
        left = share * parents - sum(sizes[place] for place in kept)
        assert all(sizes[place] > left for place in every if place not in kept)
        ways = {(qualities[place].out_of, qualities[place].into) for place in kept}
        assert len(ways) == 6
    assert stitches_within(supernetwork, qualities, every, 100.0) == list(every)
