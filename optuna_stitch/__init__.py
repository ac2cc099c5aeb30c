"""Stitch two trained networks into one supernetwork and search its subnetworks with Optuna."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_stitch.data.load import Data, load_data
    from optuna_stitch.data.splits import Split
    from optuna_stitch.data.view import View
    from optuna_stitch.diagram.drawing import draw_pair, draw_subnetwork
    from optuna_stitch.evaluation.accumulator import Evaluation
    from optuna_stitch.evaluation.evaluator import Evaluator
    from optuna_stitch.evaluation.metrics import Cost, ImageMetric, Metric, StreamedMetric
    from optuna_stitch.evaluation.racing import Racing
    from optuna_stitch.evaluation.stitch_quality import (
        StitchQuality,
        best_stitches,
        measure_stitches,
    )
    from optuna_stitch.models.parent import Parent, load_parent
    from optuna_stitch.models.train import Recipe, train_parent
    from optuna_stitch.report.evaluate import evaluate_front
    from optuna_stitch.report.front import Front
    from optuna_stitch.search.objective import Objective
    from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler
    from optuna_stitch.search.space import enqueue_starts
    from optuna_stitch.search.steering import SteeredSampler
    from optuna_stitch.search.study import open_study
    from optuna_stitch.search.worker import optimize
    from optuna_stitch.stitching.fit import StitchFit, fit
    from optuna_stitch.stitching.genotype import Genotype
    from optuna_stitch.stitching.io import load_supernetwork, save_supernetwork
    from optuna_stitch.stitching.supernetwork import Supernetwork, stitch
    from optuna_stitch.stitching.tune import Tuned, Tuning, tune
    from optuna_stitch.storage.open import open_storage
    from optuna_stitch.utils.errors import OptunaStitchError

__version__ = "0.1.0"

_MODULES = {
    "data": ("Data", "load_data"),
    "errors": ("OptunaStitchError",),
    "evaluation.single-stitch networks": ("StitchQuality", "best_stitches", "measure_stitches"),
    "evaluation.evaluator": ("Evaluator",),
    "evaluation.gathering": ("Evaluation",),
    "evaluation.metrics": ("Cost", "ImageMetric", "Metric", "StreamedMetric"),
    "evaluation.racing": ("Racing",),
    "networks.training": ("Recipe", "train_parent"),
    "networks.view": ("View",),
    "networks.zoo": ("Parent", "load_parent"),
    "results.pictures.drawing": ("draw_pair",),
    "results.judging.front": ("Front",),
    "results.judging.reevaluation": ("evaluate_front",),
    "results.pictures.subnetwork_drawing": ("draw_subnetwork",),
    "search.objective": ("Objective",),
    "search.samplers.linkage": ("LinkageSampler", "LocalSearchSampler"),
    "search.space": ("enqueue_starts",),
    "search.steering": ("SteeredSampler",),
    "search.storages": ("open_storage",),
    "search.study": ("open_study",),
    "search.worker": ("optimize",),
    "splits": ("Split",),
    "stitching.artifact": ("load_supernetwork", "save_supernetwork"),
    "stitching.fitting": ("StitchFit", "fit"),
    "stitching.genotype": ("Genotype",),
    "stitching.supernetwork": ("Supernetwork", "stitch"),
    "stitching.trainer": ("Tuned", "Tuning"),
    "stitching.tuning": ("tune",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Cost",
    "Data",
    "Evaluation",
    "Evaluator",
    "Front",
    "Genotype",
    "ImageMetric",
    "LinkageSampler",
    "LocalSearchSampler",
    "Metric",
    "Objective",
    "OptunaStitchError",
    "Parent",
    "Racing",
    "Recipe",
    "Split",
    "SteeredSampler",
    "StitchFit",
    "StitchQuality",
    "StreamedMetric",
    "Supernetwork",
    "Tuned",
    "Tuning",
    "View",
    "__version__",
    "best_stitches",
    "draw_pair",
    "draw_subnetwork",
    "enqueue_starts",
    "evaluate_front",
    "fit",
    "load_data",
    "load_parent",
    "load_supernetwork",
    "measure_stitches",
    "open_storage",
    "open_study",
    "optimize",
    "save_supernetwork",
    "stitch",
    "train_parent",
    "tune",
]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import: the command line's help and a wrong key in a study
    # file should not wait for them
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
