"""A study that was searched and evaluated on test images, once for all tests of reports."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.stitching.genotype import Genotype, Output
from tests.helpers.published import two_on_front

# Networks by output, threshold and stitches: static ones, a stitched ensemble, and cascades.
_TRIED: list[tuple[Output, float | None, list[str]]] = [
    ("a", None, []),
    ("b", None, []),
    ("ensemble", None, []),
    ("b", None, ["a.conv1.4 -> b.blocks.1.0.conv_exp"]),
    ("b", None, ["a.conv1.0 -> b.conv_stem"]),
    ("b", None, ["a.layer2.0.add -> b.blocks.3.0.se"]),
    ("ensemble", None, ["a.layer4.0.add -> b.conv_head"]),
    ("b then both", 0.25, ["a.conv1.4 -> b.blocks.1.0.conv_exp"]),
    ("b then both", 0.1, ["a.conv1.0 -> b.conv_stem"]),
    ("b then both", 0.3, ["b.blocks.2.0 -> a.layer1.0.add"]),
    ("a then both", 0.5, ["a.layer2.0.add -> b.blocks.3.0.se"]),
]


@pytest.fixture(scope="session")
def study(objective: st.Objective) -> optuna.Study:
    """A study that tried these networks."""
    names = [switch.name for switch in objective.supernetwork.switches]
    study = optuna.create_study(directions=objective.directions)
    for output, threshold, stitches in _TRIED:
        on = frozenset(names.index(name) for name in stitches)
        study.enqueue_trial(
            Genotype(output, on, threshold).params(objective.supernetwork.switches)
        )
    study.optimize(objective, n_trials=len(_TRIED))
    return study


@pytest.fixture(scope="session")
def shown(data: st.Data) -> Split:
    """Test images, as many as tests need."""
    return data.test.take(400)


@pytest.fixture(scope="session")
def front(study: optuna.Study, objective: st.Objective, shown: Split) -> st.Front:
    """All of them, with their baselines."""
    return st.evaluate_front(study, objective, shown, only=range(len(_TRIED)))


@pytest.fixture(scope="session")
def marked(front: st.Front) -> st.Front:
    """The same with a stitched cascade and a stitched network on the front.

    Which are there by right hangs on how the parents were trained.
    """
    entries = [replace(entry) for entry in front.entries]
    for entry in entries:
        if entry.trial in (3, 7):
            entry.on_front = True
            entry.on_fixed_front = not entry.is_cascade
    return replace(front, entries=entries)


@pytest.fixture(scope="session")
def searched(
    study: optuna.Study, objective: st.Objective, shown: Split
) -> tuple[optuna.Study, st.Front]:
    """The study, and a front on which are both parents and two stitched networks of three."""
    return study, two_on_front(study, objective, shown)
