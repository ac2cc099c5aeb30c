"""Switches, and the genotypes that set them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from optuna_stitch.utils.errors import StudyError

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

Output = Literal["a", "b", "ensemble"]

OUTPUT = "output"

OUTPUTS: tuple[Output, ...] = get_args(Output)

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

    Example:
        >>> from optuna_stitch.stitching.genotype import Genotype
        >>> crossed = Genotype("b", frozenset([0]))
        >>> supernetwork.subnetwork(crossed).stitches == [supernetwork.switches[0].name]
        True
    """

    output: Output
    on: frozenset[int] = frozenset()

    def params(self, switches: Sequence[Switch]) -> dict[str, str]:
        """The same as Optuna's parameters: a choice by name, the output's last.

        Args:
            switches: The supernetwork's.
        """
        values = {switch.name: STATES[index in self.on] for index, switch in enumerate(switches)}
        return {**values, OUTPUT: self.output}

    @staticmethod
    def of(params: Mapping[str, Any], switches: Sequence[Switch]) -> Genotype:
        """The genotype that Optuna's parameters stand for; switches not named are off.

        Args:
            params: Values by name.
            switches: The supernetwork's.

        Raises:
            StudyError: If a parameter is no switch, or its value no choice of it.
        """
        index_of = {switch.name: index for index, switch in enumerate(switches)}
        on: set[int] = set()
        for name, value in params.items():
            allowed = OUTPUTS if name == OUTPUT else STATES
            if name != OUTPUT and name not in index_of:
                raise StudyError(
                    f"{name!r} is no switch of this supernetwork; see `supernetwork.switches`."
                )
            if value not in allowed:
                raise StudyError(f"{name!r} cannot be {value!r}, only one of {allowed}.")
            if value == "on":
                on.add(index_of[name])
        if OUTPUT not in params:
            raise StudyError(f"The parameters lack {OUTPUT!r}: one of {OUTPUTS}.")
        return Genotype(params[OUTPUT], frozenset(on))


def single_stitch_genotypes(switches: Sequence[Switch]) -> list[Genotype]:
    """For every stitch the network that begins in one parent, crosses there, ends in the other.

    Args:
        switches: The supernetwork's.
    """
    return [Genotype(switch.into, frozenset([index])) for index, switch in enumerate(switches)]
