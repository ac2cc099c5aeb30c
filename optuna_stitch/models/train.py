"""Train a parent by a short, ordinary recipe, where there are no trained weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from optuna_stitch.data.classes import names_of
from optuna_stitch.data.splits import Split
from optuna_stitch.models.checkpoint import load_weights
from optuna_stitch.models.parent import Parent
from optuna_stitch.models.recipe import Recipe
from optuna_stitch.models.zoo import create_module
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.files import cache_folder, content_key, write_whole
from optuna_stitch.utils.memory import memory_for
from optuna_stitch.utils.progress import track

# Part of every cache key: raise it when the same recipe starts to mean other weights.
_VERSION = 1


def train_parent(
    parent: Parent,
    split: Split,
    recipe: Recipe,
    *,
    cache: str | Path | None = None,
    show_progress_bar: bool = False,
) -> bool:
    """Train a parent in place, or load the weights that the same training gave before.

    Args:
        parent: A network from a zoo; the recipe's seed decides its initial weights.
        split: Images to train on.
        recipe: How to train.
        cache: Folder that keeps trained weights by all that they depend on; `cache_folder()`, if
            None.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        True if it was trained now, False if the weights came from the cache.

    Raises:
        CheckpointError: If the cached weights are broken.
        ConfigError: If memory does not suffice for batches of the recipe's size.
        DataError: If an image does not decode.

    Example:
        >>> parent = st.load_parent("test_resnet", num_classes=10, input_size=32)
        >>> few, recipe = data.train.take(20), st.Recipe(epochs=1, batch_size=10)
        >>> st.train_parent(parent, few, recipe, cache=tmp_path)
        True
    """
    names = names_of(split.dataset)
    parent.class_names = names or parent.class_names
    folder = Path(cache) if cache is not None else cache_folder()
    made_of = parent.model_args, asdict(parent.view), recipe.model_dump(), split.fingerprint
    key = content_key(_VERSION, parent.name, *made_of)
    path = folder / "parents" / f"{parent.name.replace('/', '-')}-{key}.safetensors"
    if path.is_file():
        load_weights(parent.module, path, parent.name)
        return False
    device = parent.device
    forked = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(forked, device_type=device.type if forked else "cuda"):
        torch.manual_seed(recipe.seed)
        fresh = create_module(parent.architecture, parent.model_args)
        parent.module.load_state_dict(fresh.state_dict())
        _train(parent, split, recipe, show_progress_bar)
    weights = {k: value.contiguous().cpu() for k, value in parent.module.state_dict().items()}
    write_whole(path, lambda unfinished: save_file(weights, unfinished))
    return True


def _train(parent: Parent, split: Split, recipe: Recipe, show_progress_bar: bool) -> None:
    module = parent.module.train().requires_grad_(True)
    steps = -(-len(split) // recipe.batch_size)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps
    )
    rounds = track(
        range(recipe.epochs), f"Train {parent.name}", show_progress_bar=show_progress_bar
    )
    too_large = (
        f"Memory does not suffice to train {parent.name} in batches of {recipe.batch_size} "
        f"images on {parent.device}; give its recipe a smaller `batch_size`."
    )
    for _ in rounds:
        for chosen in torch.split(torch.randperm(len(split)), recipe.batch_size):
            if len(chosen) == 1:
                continue  # BatchNorm cannot normalize a single vector
            batch = split.pick(chosen.tolist(), [parent.view], parent.device)
            optimizer.zero_grad()
            # not halved: BatchNorms would see other batches, and the weights be others
            with memory_for(ConfigError, too_large):
                loss = F.cross_entropy(
                    module(batch.images[0]), batch.targets, label_smoothing=recipe.label_smoothing
                )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    module.eval().requires_grad_(False)
