"""Tune fitted stitches by gradients, on random subnetworks; optional, after the closed form.

Every step runs a few subnetworks on one batch as a single program: what the parents compute is
shared and needs no gradient. The subnetworks learn to answer as the parents' ensemble does, and,
as far as asked, as the labels say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from optuna_stitch.errors import FitError
from optuna_stitch.progress import progress_bar
from optuna_stitch.splits import Split
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.stitching.trainer import HELD_OUT, Trainer, Tuned, Tuning, parents_of

_CHECKPOINT_EVERY = 50


def tune(
    supernetwork: Supernetwork,
    split: Split,
    tuning: Tuning | None = None,
    *,
    checkpoint: Path | None = None,
    show_progress_bar: bool = False,
) -> list[Tuned]:
    """Tune the stitches of a fitted supernetwork in place.

    In several processes started by ``torchrun``, each computes its share of every batch.

    Args:
        supernetwork: The fitted supernetwork.
        split: Images to learn from; the train split.
        tuning: How.
        checkpoint: A file to keep the progress in; if it exists and belongs to the same tuning,
            tuning goes on from there.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per stitch, in the switches' order.

    Raises:
        FitError: If the parents label pixels, there are too few images, the checkpoint belongs to
            another tuning, or the loss is not finite.
    """
    tuning = tuning or Tuning()
    if supernetwork.segments:
        raise FitError("Tuning is for networks that label images; these label every pixel.")
    if len(split) < 2 * HELD_OUT:
        raise FitError(f"{len(split)} images are too few to tune on; give {2 * HELD_OUT}.")
    trainer = Trainer(supernetwork, split, tuning)
    if checkpoint is not None and checkpoint.is_file():
        trainer.load(checkpoint)
    before = trainer.divergences(fitted=True)
    with (
        progress_bar(show_progress_bar=show_progress_bar) as progress,
        _learning(supernetwork, trainer.parameters()),
    ):
        task = progress.add_task("Tune", total=tuning.steps, completed=trainer.step, note="")
        while trainer.step < tuning.steps:
            loss = trainer.learn()
            progress.update(task, advance=1, note=f"loss {loss:.3f}")
            last = trainer.step == tuning.steps
            if checkpoint is not None and (last or trainer.step % _CHECKPOINT_EVERY == 0):
                trainer.save(checkpoint)
    return trainer.finish(before)


@contextlib.contextmanager
def _learning(supernetwork: Supernetwork, learn: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let some parameters have gradients, and no others, for a while."""
    parts = [*parents_of(supernetwork), supernetwork.stitches]
    before = [(weight, weight.requires_grad) for part in parts for weight in part.parameters()]
    learns = {id(weight) for weight in learn}
    for weight, _ in before:
        weight.requires_grad_(id(weight) in learns)
    try:
        yield
    finally:
        for weight, had in before:
            weight.requires_grad_(had)
            weight.grad = None
