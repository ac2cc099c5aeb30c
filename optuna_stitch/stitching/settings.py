"""How stitches are fitted and tuned; importable without torch, for study files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optuna_stitch.utils.settings import Settings

PointKind = Literal["auto", "all", "dominators", "blocks"]

# How it is measured how sure a cascade's first answer is; see `stitching/cascade.py`.
Confidence = Literal["probability", "margin", "entropy", "calibrated"]


class FitSettings(Settings):
    """How stitches are fitted in closed form.

    Args:
        images: How many images of the split to use (all, if None).
        positions: How many grid positions per image to use at most, drawn at random. If None,
            as many as make 12,000 samples over all images, and at least 16.
        kernel: Side of the largest kernel, 1 or 3. A stitch takes the smaller one where that
            loses no more than ``rank_loss`` of the explained variance, or where the larger one
            would read too many channels (more than 133).
        rank_loss: Share of the explained variance that a lower rank may cost on held-out images;
            None for full rank.
        budget: Multiply-accumulates of a stitch at most, as a share of the cheaper parent's; its
            rank is lowered until it keeps within. None for no limit.
        match_variance: Whether to restore the variance that ridge takes.
        by_position: Whether stitches may have a bias for every position of the grid, where that
            predicts held-out images better.
        fold: Whether, between grids of which one is a whole number of times the other, stitches
            tell the positions of the finer grid apart, instead of reading their average or
            writing what lies between its neighbours.
        context: Whether stitches may also read the mean over the source's grid, and its class
            token, at every position, where that predicts held-out images better; ``auto`` tries
            it where an end is a sequence of tokens, which attention mixes over the whole image.
        recalibrate: How many of the images are kept with the supernetwork to estimate BatchNorm
            statistics anew downstream of stitches, for each subnetwork; 0 to keep the parents'
            own statistics.
        memory: GiB that the sums may take; beyond it, stitches are fitted in groups, with a pass
            over the images for each. If None, 2 on the processor, and half of what is free on an
            accelerator.
        batch_size: Images per batch; if None, as the supernetwork says.
        seed: Draws the positions.

    Example:
        >>> from optuna_stitch.stitching.settings import FitSettings
        >>> FitSettings(kernel=1, images=200).recalibrate
        64
    """

    images: int | None = Field(None, gt=0)
    positions: int | None = Field(None, gt=0)
    kernel: Literal[1, 3] = 3
    rank_loss: float | None = Field(0.01, ge=0)
    budget: float | None = Field(0.1, gt=0)
    match_variance: bool = True
    by_position: bool = True
    fold: bool = True
    context: Literal["auto"] | bool = "auto"
    recalibrate: int = Field(64, ge=0)
    memory: float | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)
    seed: int = 0


class Tuning(Settings):
    """How fitted stitches are tuned by gradients.

    Args:
        steps: Number of optimizer steps.
        batch_size: Images per step, over all processes.
        networks: Subnetworks per step.
        accumulate: Batches whose gradients are added up before a step.
        learning_rate: Of AdamW, at its start; it falls to zero along a cosine.
        weight_decay: Of AdamW.
        task: Weight of the labels' cross-entropy beside the distillation; none of two jobs.
        several: Probability that a subnetwork has further stitches on beside the one it is drawn
            for, one more on average.
        thaw: Whether the parents' weights learn too, at a tenth of the rate.
        bfloat16: Whether to compute in mixed precision.
        seed: Draws images and subnetworks.

    Example:
        >>> st.Tuning(steps=2000).networks
        6
    """

    steps: int = Field(500, gt=0)
    batch_size: int = Field(32, gt=1)
    networks: int = Field(6, gt=0)
    accumulate: int = Field(1, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    task: float = Field(0.5, ge=0)
    several: float = Field(0.3, ge=0, le=1)
    thaw: bool = False
    bfloat16: bool = False
    seed: int = 0


class Finishing(Settings):
    """How one network is trained to its end: distillation from both parents, labels beside.

    Args:
        trains: ``all`` of it, or its ``stitches`` and what lies downstream of them; a network
            without stitches, such as a parent, trains whole.
        polish: On how many train images layers that follow stitches are refitted in closed form
            before it trains; taken where validation images gain by it. 0 for not.
        epochs: Passes over the train split at most; 0 to polish it only.
        minutes: How long it may take, about: after a few steps it is settled how many fit, and
            from then on the clock has no say.
        batch_size: Images per step, over all processes.
        learning_rate: Of AdamW, for stitches; it falls to zero along a cosine.
        parents_rate: What share of it the parents' own layers have.
        weight_decay: Of AdamW.
        labels: Weight of the labels' cross-entropy; distillation has the rest. 0 of two jobs, and
            where the train split has no labels.
        temperature: By which logits are divided in the distillation.
        average: How much of the weights' moving average is kept in a step.
        patience: Epochs without a gain on validation images after which it ends; None for never.
        flip: Whether half the images are mirrored, left to right.
        shift: By what share of their side images are moved at most.
        mixup: Whether images are blended with others, and what is wanted of them likewise.
        batch_norms: ``kept`` leaves BatchNorms the statistics with which the network was found;
            with ``settled`` they see those of each batch, and are measured anew on train images
            before the network is judged. ``auto`` settles those of students only.
        precision: ``auto`` for bfloat16 on an accelerator; or ``float32``, ``bfloat16``.
        seed: Orders the images, and draws what happens to them.

    Example:
        >>> st.Finishing(epochs=5, trains="stitches").learning_rate
        0.001
    """

    trains: Literal["all", "stitches"] = "all"
    polish: int = Field(400, ge=0)
    epochs: int = Field(20, ge=0)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(64, gt=1)
    learning_rate: float = Field(1e-3, gt=0)
    parents_rate: float = Field(0.3, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    labels: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(1.0, gt=0)
    average: float = Field(0.99, ge=0, lt=1)
    patience: int | None = Field(5, gt=0)
    flip: bool = False
    shift: float = Field(0.0, ge=0, lt=1)
    mixup: bool = False
    batch_norms: Literal["auto", "kept", "settled"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
