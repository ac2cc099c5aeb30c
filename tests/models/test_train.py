from __future__ import annotations

from pathlib import Path

import torch

import optuna_stitch as st


def test_training_is_repeatable_and_cached(data: st.Data, tmp_path: Path) -> None:
    recipe = st.Recipe(epochs=1, learning_rate=1e-3, seed=3)

    def trained(folder: Path) -> tuple[bool, dict[str, torch.Tensor]]:
        parent = st.load_parent("test_resnet", num_classes=10, input_size=32)
        return (
            st.train_parent(parent, data.train.take(60), recipe, cache=folder),
            parent.module.state_dict(),
        )

    new, first = trained(tmp_path / "one")
    again, cached = trained(tmp_path / "one")
    anew, second = trained(tmp_path / "two")
    assert (new, again, anew) == (True, False, True)
    for key, value in first.items():
        assert torch.equal(value, cached[key])
        assert torch.equal(value, second[key])
