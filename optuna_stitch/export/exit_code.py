"""Write when a cascade's first answer is enough, and what both heads answer, as Python code."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from optuna_stitch.stitching.cascade import MEASURES, Exit

_METHODS = '''\
def forward(self, {arguments}) -> Tensor:
    """Return {answer} for {shapes}."""
    logits, *handed = self.first({inputs})
    unsure = (self.sure(logits) < {threshold}).nonzero()[:, 0]
    self.went_on = len(unsure)
    if not self.went_on:
        return logits
    others = self.rest(*[value[unsure] for value in handed])
    answers = logits.clone()
    answers[unsure] = self.mean({heads})
    return answers

def sure(self, logits: Tensor) -> Tensor:
    """Return how sure answers are, (N,).

    This is {measure}.
    """
{sure}

def mean(self, {both}) -> Tensor:
    """Return the mean of both heads' class probabilities, as logits."""
{mean}
'''


def exit_code(
    found: Exit, shape: Sequence[int], inputs: Sequence[str], *, answer: str, shapes: str
) -> str:
    """Write the methods ``forward``, ``sure`` and ``mean`` of a cascade.

    They compute bit for bit what `Exit` and `CascadeModule` compute, with the exit's numbers.

    Args:
        found: When the first answer is enough.
        shape: Of an image's logits, ``(classes, ...)``.
        inputs: Names of the images.
        answer: Says what is returned.
        shapes: Says what is taken.

    Returns:
        Their text, without indentation.
    """
    heads = ["logits[unsure]", "others"]
    return _METHODS.format(
        arguments=", ".join(f"{name}: Tensor" for name in inputs),
        answer=answer,
        shapes=shapes,
        inputs=", ".join(inputs),
        threshold=_number(found.threshold),
        heads=", ".join(heads if found.first == 0 else heads[::-1]),
        both=", ".join(f"{side}: Tensor" for side in found.sides),
        measure=MEASURES[found.confidence],
        sure=textwrap.indent("\n".join(_sure(found, shape)), " " * 4),
        mean=textwrap.indent("\n".join(_mean(found)), " " * 4),
    )


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _tempered(name: str, temperature: float) -> str:
    """Logits over a temperature, where it changes them."""
    return name if temperature == 1 else f"{name} / {_number(temperature)}"


def _sure(found: Exit, shape: Sequence[int]) -> list[str]:
    """The lines of the measure of confidence."""
    tempered = _tempered("logits", found.temperatures[found.first])
    doubled = f"{tempered}.double()" if tempered == "logits" else f"({tempered}).double()"
    # networks that label pixels are as sure as they are of their pixels on average
    pixels = ".flatten(1).mean(dim=1)" if len(shape) > 1 else ""
    margin = ["margin = probabilities.amax(dim=1)"]
    if shape[0] > 1:
        margin = [
            "top, second = probabilities.topk(2, dim=1).values.unbind(dim=1)",
            f"margin = {f'(top - second){pixels}' if pixels else 'top - second'}",
        ]
    elif pixels:
        margin = [f"margin = probabilities.amax(dim=1){pixels}"]
    peaked = f"1 - entropy / math.log({max(2, shape[0])})"
    lines = {
        "probability": [f"probability = probabilities.amax(dim=1){pixels}"],
        "margin": margin,
        "entropy": [
            "# a logarithm of nought is finite here, so that nought times it is nought",
            "entropy = -(probabilities * log_probabilities.clamp(min=-1e4)).sum(dim=1)",
            f"peaked = {f'({peaked}){pixels}' if pixels else peaked}",
        ],
    }
    names = {"probability": "probability", "margin": "margin", "entropy": "peaked"}
    head = [
        "# in double precision: many answers differ in the last digits only",
        f"log_probabilities = F.log_softmax({doubled}, dim=1)",
        "probabilities = log_probabilities.exp()",
    ]
    if found.confidence != "calibrated":
        return [*head, *lines[found.confidence], f"return {names[found.confidence]}"]
    constant, *slopes = found.coefficients
    return [
        *head,
        *(line for own in lines.values() for line in own),
        f"odds = {_number(constant)}",
        *(
            f"odds = odds + {_number(slope)} * {name}"
            for slope, name in zip(slopes, names.values(), strict=True)
        ),
        "return torch.sigmoid(odds)",
    ]


def _mean(found: Exit) -> list[str]:
    """The lines of the answer of both heads."""
    shares = (found.weight, 1 - found.weight)
    parts = [
        f"F.log_softmax({_tempered(name, temperature)}, dim=1) + math.log({_number(share)})"
        for name, temperature, share in zip(found.sides, found.temperatures, shares, strict=True)
        if share > 0
    ]
    if len(parts) == 1:
        return [f"return {parts[0]}"]
    a, b = found.sides
    return [f"{a} = {parts[0]}", f"{b} = {parts[1]}", f"return torch.logaddexp({a}, {b})"]
