"""The base of classes that hold settings, as Python and study files give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from optuna_stitch.utils.errors import ConfigError


class Settings(BaseModel):
    """Named values that are checked when they are given, and never change afterwards.

    A section of a study file can be a class of settings: pydantic then validates it as part of the
    file, and raises its own ``ValidationError``, which knows the place in the file.

    Args:
        **values: Values by name.

    Raises:
        ConfigError: If a name is unknown or missing, or a value is not allowed.

    Example:
        >>> st.Recipe(epochs=0)
        Traceback (most recent call last):
        optuna_stitch.utils.errors.ConfigError: `epochs` of Recipe: Input should be greater than 0
        (it is 0).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            explained = (_explain(type(self), one) for one in error.errors())
            raise ConfigError("\n".join(explained)) from error

    # Without this mark, pydantic calls `__init__` for sections of a study file too, and the error
    # above would hide where in the file the value stands.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


_S = TypeVar("_S", bound=Settings)


def settings_of(kind: type[_S], given: _S | None, options: Mapping[str, Any]) -> _S:
    """Settings as functions take them: whole, or some of the fields.

    Args:
        kind: Their class.
        given: All of them, if they are given so.
        options: Fields by name, if they are given so.

    Raises:
        ConfigError: If they are given both ways, or a field is unknown or has a wrong value.

    Example:
        >>> from optuna_stitch.utils.settings import settings_of
        >>> settings_of(st.Racing, None, {"first": 50}).first
        50
    """
    if given is None:
        return kind(**options)
    if options:
        raise ConfigError(
            f"{kind.__name__} is given whole, and {_listed(options)} beside it. Give it whole, or "
            "only its fields."
        )
    return given


def _explain(settings: type[Settings], error: Any) -> str:
    """One line for one of pydantic's errors: the name, the value, what is allowed."""
    dotted = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        allowed = _listed(settings.model_fields)
        return f"{settings.__name__} has no `{dotted}`; allowed are {allowed}."
    if error["type"] == "missing":
        return f"{settings.__name__} needs `{dotted}`."
    message = error["msg"].removeprefix("Value error, ")
    name = f"`{dotted}` of {settings.__name__}" if dotted else settings.__name__
    return f"{name}: {message} (it is {error['input']!r})."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
