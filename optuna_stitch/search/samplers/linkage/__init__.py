"""Linkage learning and Pareto local search as Optuna samplers."""

from .local_search import LocalSearchSampler
from .sampler import LinkageSampler

__all__ = ["LinkageSampler", "LocalSearchSampler"]
