from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.settings import Settings, settings_of


class _Oven(Settings):
    degrees: int = Field(180, gt=0)
    heat: Literal["top", "both"] = "both"
    minutes: float


class _Kitchen(BaseModel):
    oven: _Oven


def test_values_are_kept_and_never_change() -> None:
    oven = _Oven(minutes=20)
    assert (oven.degrees, oven.heat, oven.minutes) == (180, "both", 20.0)
    assert oven == _Oven(minutes=20.0)
    assert hash(oven) == hash(_Oven(minutes=20.0))
    with pytest.raises(ValidationError, match="frozen"):
        oven.degrees = 200  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"minutes": 1, "degrees": 0},
            r"^`degrees` of _Oven: Input should be greater than 0 \(it is 0\)\.$",
        ),
        (
            {"minutes": 1, "heat": "low"},
            r"^`heat` of _Oven: Input should be 'top' or 'both' \(it is 'low'\)\.$",
        ),
        ({"minutes": "long"}, r"^`minutes` of _Oven: .* valid number.* \(it is 'long'\)\.$"),
        ({}, r"^_Oven needs `minutes`\.$"),
        (
            {"minutes": 1, "degree": 2},
            r"^_Oven has no `degree`; allowed are `degrees`, `heat`, `minutes`\.$",
        ),
        ({"degrees": -1}, r"`degrees` of _Oven: .* \(it is -1\)\.\n_Oven needs `minutes`\.$"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _Oven(**values)


def test_settings_are_given_whole_or_by_their_fields() -> None:
    oven = _Oven(minutes=20)
    assert settings_of(_Oven, oven, {}) is oven
    assert settings_of(_Oven, None, {"minutes": 20}) == oven
    with pytest.raises(ConfigError, match=r"^_Oven is given whole, and `degrees` beside it\."):
        settings_of(_Oven, oven, {"degrees": 90})


def test_within_another_model_pydantic_tells_the_place() -> None:
    with pytest.raises(ValidationError) as caught:
        _Kitchen.model_validate({"oven": {"minutes": 1, "degrees": 0}})
    assert [error["loc"] for error in caught.value.errors()] == [("oven", "degrees")]
    with pytest.raises(ValidationError):
        _Oven.model_validate({"minutes": 1, "degree": 2})
    kitchen = _Kitchen.model_validate({"oven": {"minutes": 1}})
    assert kitchen.oven == _Oven(minutes=1)
