"""Worker processes of one study, for tests and benchmarks."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import torch

import optuna_stitch as st
from optuna_stitch.search.study import create_study
from optuna_stitch.search.worker import optimize
from optuna_stitch.storage.open import open_storage, result_cache_engine

NAME = "shared"

# What the attributes of a study begin with that say how long a worker computed, in seconds.
CPU = "cpu:"


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    return st.LinkageSampler(seed=seed)


def work(folder: Path, url: str, seed: int, images: int, options: dict[str, Any]) -> None:
    """What each process does: load the supernetwork, join the study, search."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    supernetwork = st.Supernetwork.load(folder)
    data = st.load_data("sklearn/digits", train={"images": 300}, val={"images": 200})
    storage = open_storage(url)
    result_cache = result_cache_engine(storage, folder) if options.pop("remember", False) else None
    objective = st.Objective(supernetwork, data.val.take(images), result_cache=result_cache)
    study = create_study(
        objective,
        study_name=NAME,
        storage=storage,
        sampler=sampler(seed),
        load_if_exists=True,
        population=20,
    )
    before = time.process_time()
    optimize(study, objective, **options)
    study.set_user_attr(f"{CPU}{seed}", time.process_time() - before)
    os._exit(0)  # libraries that were forked need not be taken down


@contextmanager
def workers(
    count: int, folder: Path, url: str, *, images: int = 30, first_seed: int = 0, **options: Any
) -> Iterator[list[BaseProcess]]:
    """Start workers; at the end of the block those that still run are killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.working"])  # torch and timm are imported once
    started = [
        context.Process(target=work, args=(folder, url, seed, images, options), daemon=True)
        for seed in range(first_seed, first_seed + count)
    ]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()
