from __future__ import annotations

import optuna

from optuna_stitch.search.space import continuing_genotypes, enqueue_starts, suggest
from optuna_stitch.stitching.genotype import Genotype, outputs_of
from tests.helpers.networks import small_trio


def test_a_search_of_three_starts_from_every_pair() -> None:
    supernetwork = small_trio()
    names = [switch.name for switch in supernetwork.switches]
    index = next(place for place, name in enumerate(names) if name[0] == "a" and "-> c." in name)
    on = frozenset([index])
    costs = {side: supernetwork.subnetwork(Genotype(side, on)).macs for side in "ac"}
    cheaper = min(costs, key=lambda side: costs[side])
    assert continuing_genotypes(supernetwork, [index]) == [
        Genotype("a+c", on),
        Genotype(f"{cheaper} then a+c", on, 0.25),
    ]
    study = optuna.create_study(directions=["maximize", "minimize"])
    enqueue_starts(study, supernetwork, population=20)
    asked = [trial.params["output"] for trial in study.get_trials()]
    assert asked[:7] == ["a", "b", "c", "a+b", "a+c", "b+c", "ensemble"]
    assert asked[7:13] == list(outputs_of("abc")[7:])
    for space in ("flat", "reachable"):
        suggest(optuna.trial.FixedTrial(study.trials[-1].params), supernetwork, space)
