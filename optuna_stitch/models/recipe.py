"""How to train a parent, apart from the training, which needs torch."""

from __future__ import annotations

from pydantic import Field

from optuna_stitch.utils.settings import Settings


class Recipe(Settings):
    """How to train a parent: AdamW with one cycle of the learning rate, and cross-entropy.

    Args:
        epochs: Passes over the train split.
        learning_rate: Peak of the cycle.
        weight_decay: AdamW's decoupled weight decay.
        batch_size: Images per step.
        label_smoothing: Share of each label that the other classes get.
        seed: Decides the initial weights and the order of the images.

    Raises:
        ConfigError: If a value is not allowed.

    Example:
        >>> st.Recipe(epochs=6, learning_rate=4e-3).batch_size
        50
    """

    epochs: int = Field(gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    batch_size: int = Field(50, gt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    seed: int = 0
