"""Switches, and the genotypes that set them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from optuna_stitch.utils.errors import StudyError

# A parent by its letter.
Side = str

# As many parents as a supernetwork may have.
LETTERS: tuple[Side, ...] = tuple("abcdefgh")

# Of two parents.
SIDES: tuple[Side, Side] = ("a", "b")

# What a network answers with, by a name; see `outputs_of`.
Output = str

OUTPUT = "output"

ENSEMBLE: Output = "ensemble"

# The only one of parents with two jobs: the answers of both.
BOTH: Output = "both"

_THEN = " then "

THRESHOLD = "threshold"

STATES = ("off", "on")


def outputs_of(sides: Sequence[Side]) -> tuple[Output, ...]:
    """What networks of parents with one job may answer with.

    A parent's own head; the ensemble of all and, of more than two parents, of each pair; the
    cascades of each pair, which ask one of its heads first and, where that is unsure, both.

    Args:
        sides: The parents.

    Example:
        >>> outputs_of("ab")
        ('a', 'b', 'ensemble', 'a then both', 'b then both')
        >>> outputs_of("abc")[:7]
        ('a', 'b', 'c', 'a+b', 'a+c', 'b+c', 'ensemble')
        >>> outputs_of("abc")[7:10]
        ('a then a+b', 'b then a+b', 'a then a+c')
    """
    if len(sides) == 2:
        return (*sides, ENSEMBLE, *(f"{side}{_THEN}{BOTH}" for side in sides))
    pairs = ["+".join(pair) for pair in combinations(sides, 2)]
    cascades = [f"{side}{_THEN}{pair}" for pair in pairs for side in pair.split("+")]
    return (*sides, *pairs, ENSEMBLE, *cascades)


def static_outputs(sides: Sequence[Side]) -> tuple[Output, ...]:
    """Those of `outputs_of` that compute the same for every image: all but cascades.

    Args:
        sides: The parents.
    """
    return tuple(output for output in outputs_of(sides) if first_of(output) is None)


def first_of(output: Output) -> Side | None:
    """The head that a cascade asks first; None of outputs that compute the same for every image.

    Args:
        output: Any.
    """
    first, then, _ = output.partition(_THEN)
    return first if then else None


def heads_of(output: Output, sides: Sequence[Side]) -> tuple[Side, ...]:
    """The parents whose heads have a say, in their order.

    Args:
        output: Any.
        sides: All parents.
    """
    together = output.rpartition(_THEN)[2]
    return tuple(sides) if together in (ENSEMBLE, BOTH) else tuple(together.split("+"))


# Of two parents with one job.
OUTPUTS: tuple[Output, ...] = outputs_of(SIDES)

# The heads that the cascades of two parents ask first.
FIRST: dict[Output, Side] = {o: first for o in OUTPUTS if (first := first_of(o)) is not None}


@dataclass(frozen=True)
class Switch:
    """One on/off switch: whether a stitch replaces its target point.

    Args:
        name: What people read, ``a.layer2.1 -> b.blocks.3``.
        source: Name of the node whose raw feature is read.
        target: Name of the node whose feature is replaced.
        into: The parent that the target belongs to.
        out_of: The parent that the source belongs to; of two parents the other one, if not given.
    """

    name: str
    source: str
    target: str
    into: Side
    out_of: Side = ""

    def __post_init__(self) -> None:
        if not self.out_of:
            object.__setattr__(self, "out_of", "a" if self.into == "b" else "b")


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
        return first_of(self.output)

    def params(self, switches: Sequence[Switch]) -> dict[str, Any]:
        """The same as Optuna's parameters: a choice by name, then the output and the threshold.

        Args:
            switches: The supernetwork's.
        """
        values = {switch.name: STATES[index in self.on] for index, switch in enumerate(switches)}
        threshold = {} if self.threshold is None else {THRESHOLD: self.threshold}
        return {**values, OUTPUT: self.output, **threshold}

    @staticmethod
    def of(
        params: Mapping[str, Any], switches: Sequence[Switch], sides: Sequence[Side] = SIDES
    ) -> Genotype:
        """The genotype that Optuna's parameters stand for; switches not named are off.

        Args:
            params: Values by name. The threshold is read for cascades only.
            switches: The supernetwork's.
            sides: Its parents.

        Raises:
            StudyError: If a parameter is no switch, its value no choice of it, or a cascade's
                threshold is missing or outside of 0 and 1.
        """
        index_of = {switch.name: index for index, switch in enumerate(switches)}
        answers = (*outputs_of(sides), *((BOTH,) if len(sides) == 2 else ()))
        on: set[int] = set()
        for name, value in params.items():
            if name == THRESHOLD:
                continue
            allowed = answers if name == OUTPUT else STATES
            if name != OUTPUT and name not in index_of:
                raise StudyError(
                    f"{name!r} is no switch of this supernetwork; see `supernetwork.switches`."
                )
            if value not in allowed:
                raise StudyError(f"{name!r} cannot be {value!r}, only one of {allowed}.")
            if value == "on":
                on.add(index_of[name])
        if OUTPUT not in params:
            raise StudyError(f"The parameters lack {OUTPUT!r}: one of {answers}.")
        output: Output = params[OUTPUT]
        threshold = _threshold(output, params.get(THRESHOLD)) if first_of(output) else None
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
