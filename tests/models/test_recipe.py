from __future__ import annotations

import subprocess
import sys

import pytest

import optuna_stitch as st
from optuna_stitch.models.recipe import Recipe
from optuna_stitch.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("epochs", 0, "greater than 0"),
        ("learning_rate", 0.0, "greater than 0"),
        ("weight_decay", -0.1, "greater than or equal to 0"),
        ("batch_size", 1, "greater than 1"),
        ("label_smoothing", 1.0, "less than 1"),
        ("seed", "one", "valid integer"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object, allowed: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^`{name}` of Recipe: .*{allowed}.*\(it is {value!r}\)"
    ):
        st.Recipe(**{"epochs": 1, name: value})


def test_study_files_read_recipes_without_torch() -> None:
    code = f"import sys, {Recipe.__module__}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
