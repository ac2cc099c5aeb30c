"""Switches, and the genotypes that set them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from optuna_stitch.utils.errors import StudyError

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

Output = Literal["a", "b", "ensemble", "a then both", "b then both", "both"]

OUTPUT = "output"

# The only one of parents with two jobs: the answers of both.
BOTH: Output = "both"

_ALL: tuple[Output, ...] = get_args(Output)

# Of parents with one job.
OUTPUTS: tuple[Output, ...] = tuple(output for output in _ALL if output != BOTH)

# What studies could choose from before there were cascades.
STATIC_OUTPUTS: tuple[Output, ...] = ("a", "b", "ensemble")

# The head that a cascade asks first; all other outputs compute the same for every image.
FIRST: dict[Output, Side] = {"a then both": "a", "b then both": "b"}

THRESHOLD = "threshold"

STATES = ("off", "on")


@dataclass(frozen=True)
class Switch:
    """One on/off switch: whether a stitch replaces its target point.

    Args:
        name: What people read, ``a.layer2.1 -> b.blocks.3``.
        source: Name of the node whose raw feature is read.
        target: Name of the node whose feature is replaced.
        into: The parent that the target belongs to; the source belongs to the other.
    """

    name: str
    source: str
    target: str
    into: Side


@dataclass(frozen=True)
class Genotype:
    """A value for every switch.

    Args:
        output: What the subnetwork returns.
        on: Indices of the switches that are on.
        threshold: Of a cascade, how sure its first answer must be, from 0 to 1. It is a rank: the
            share of the images that the search sees whose first answer is less sure, so that a
            threshold of 0.3 lets 30% of them go on. None for other outputs.

    Example:
        >>> from optuna_stitch.stitching.genotype import Genotype
        >>> crossed = Genotype("b", frozenset([0]))
        >>> supernetwork.subnetwork(crossed).stitches == [supernetwork.switches[0].name]
        True
    """

    output: Output
    on: frozenset[int] = frozenset()
    threshold: float | None = None

    @property
    def first(self) -> Side | None:
        """The head that a cascade asks first; None where every image is computed alike."""
        return FIRST.get(self.output)

    def params(self, switches: Sequence[Switch]) -> dict[str, Any]:
        """The same as Optuna's parameters: a choice by name, then the output and the threshold.

        Args:
            switches: The supernetwork's.
        """
        values = {switch.name: STATES[index in self.on] for index, switch in enumerate(switches)}
        threshold = {} if self.threshold is None else {THRESHOLD: self.threshold}
        return {**values, OUTPUT: self.output, **threshold}

    @staticmethod
    def of(params: Mapping[str, Any], switches: Sequence[Switch]) -> Genotype:
        """The genotype that Optuna's parameters stand for; switches not named are off.

        Args:
            params: Values by name. The threshold is read for cascades only.
            switches: The supernetwork's.

        Raises:
            StudyError: If a parameter is no switch, its value no choice of it, or a cascade's
                threshold is missing or outside of 0 and 1.
        """
        index_of = {switch.name: index for index, switch in enumerate(switches)}
        on: set[int] = set()
        for name, value in params.items():
            if name == THRESHOLD:
                continue
            allowed = _ALL if name == OUTPUT else STATES
            if name != OUTPUT and name not in index_of:
                raise StudyError(
                    f"{name!r} is no switch of this supernetwork; see `supernetwork.switches`."
                )
            if value not in allowed:
                raise StudyError(f"{name!r} cannot be {value!r}, only one of {allowed}.")
            if value == "on":
                on.add(index_of[name])
        if OUTPUT not in params:
            raise StudyError(f"The parameters lack {OUTPUT!r}: one of {_ALL}.")
        output: Output = params[OUTPUT]
        threshold = _threshold(output, params.get(THRESHOLD)) if output in FIRST else None
        return Genotype(output, frozenset(on), threshold)


def _threshold(output: Output, value: Any) -> float:
    if value is None:
        raise StudyError(
            f"The output {output!r} needs a {THRESHOLD!r}: the share of images that go on, from 0 "
            "to 1."
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise StudyError(
            f"The {THRESHOLD!r} of {output!r} is {value!r}; it is the share of images that go on, "
            "from 0 to 1."
        )
    return float(value)


def single_stitch_genotypes(switches: Sequence[Switch]) -> list[Genotype]:
    """For every stitch the network that begins in one parent, crosses there, ends in the other.

    Args:
        switches: The supernetwork's.
    """
    return [Genotype(switch.into, frozenset([index])) for index, switch in enumerate(switches)]
