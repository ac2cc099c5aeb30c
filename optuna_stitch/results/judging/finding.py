"""What was found, in one plain sentence that the paired tests bear out."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_stitch.results.judging.front import STITCHED, Claim, Entry, Front
from optuna_stitch.results.pictures.plots import axis_of, words_of

# Networks whose qualities differ by no more than this are about as good.
_NEAR = 0.01
# A smaller share of the cost saved is not worth a headline.
_WORTH_SAYING = 0.05
# A network that loses more against the cheapest alternative is no bargain at any saving.
_BARGAIN = 0.05


@dataclass(frozen=True)
class Finding:
    """What a report opens with.

    Args:
        sentence: The finding.
        entry: The network that it is about; None where it is about none.
    """

    sentence: str
    entry: Entry | None


def headline(front: Front) -> str:
    """What was found, in one plain sentence."""
    return find(front).sentence


def find(front: Front) -> Finding:
    """What was found: the strongest of these that holds.

    A network that is better than a baseline and costs no more; one that is as good and cheaper;
    one that is cheaper than all baselines and loses little; or that there is none.

    Args:
        front: With its claims.
    """
    shown = [entry for entry in front.front if entry.kind == STITCHED]
    for kind in (_better, _cheaper, _cheapest):
        found = kind(front, shown)
        if found is not None:
            return found
    if shown:
        count = (
            f"{len(shown)} stitched networks lie" if len(shown) > 1 else "A stitched network lies"
        )
        return Finding(
            f"{count} on the front, but none is cheaper than a parent or a combination of both of "
            f"about the same {words_of(front.metric)}.",
            max(shown, key=lambda entry: entry.quality),
        )
    return Finding(
        f"No stitched network is worth its cost: {_listed(_names(front))} "
        f"{'is' if len(front.front) == 1 else 'are'} at least as good and cost no more.",
        None,
    )


def _better(front: Front, shown: list[Entry]) -> Finding | None:
    """A network that is significantly better than a baseline that costs as much or more."""
    found = [
        (rival.on_front, claim.difference, entry, claim, rival)
        for entry in shown
        for claim, rival in _rivals(front, entry)
        if claim.significant
        and claim.difference > 0
        and entry.test[front.cost] <= rival.test[front.cost]
    ]
    if not found:
        return None
    _, _, entry, claim, rival = max(found, key=lambda each: each[:2])
    saving = 1 - entry.test[front.cost] / rival.test[front.cost]
    needs = (
        f"needs {100 * saving:.0f}% fewer {axis_of(front.cost).words}"
        if saving >= _WORTH_SAYING
        else "costs no more"
    )
    return Finding(
        f"A stitched network ({entry.name}) has a higher {words_of(front.metric)} than "
        f"{_the(rival)} ({_percent(entry)} against {_percent(rival)}, p = {claim.p_value:.2g} "
        f"after correction) and {needs}.",
        entry,
    )


def _cheaper(front: Front, shown: list[Entry]) -> Finding | None:
    """A network that is about as good as the cheapest such baseline, for less."""
    found: list[tuple[float, Entry, Entry]] = []
    for entry in shown:
        as_good = [other for other in front.baselines if other.quality >= entry.quality - _NEAR]
        for rival in sorted(as_good, key=lambda other: other.test[front.cost])[:1]:
            saving = 1 - entry.test[front.cost] / rival.test[front.cost]
            if rival.quality <= entry.quality + _NEAR and saving > _WORTH_SAYING:
                found.append((saving, entry, rival))
    if not found:
        return None
    saving, entry, rival = max(found, key=lambda each: each[0])
    claim = _claim(entry, rival)
    chance = ""
    if claim is not None:
        told = "can tell" if claim.significant else "cannot tell"
        chance = f", which {front.images} test images {told} from chance (p = {claim.p_value:.2g})"
    return Finding(
        f"A stitched network ({entry.name}) needs {100 * saving:.0f}% fewer "
        f"{axis_of(front.cost).words} than {_the(rival)}; its {words_of(front.metric)} of "
        f"{_percent(entry)} differs from that one's {_percent(rival)} by "
        f"{100 * (entry.quality - rival.quality):+.1f} points{chance}.",
        entry,
    )


def _cheapest(front: Front, shown: list[Entry]) -> Finding | None:
    """A network that costs less than all baselines and loses little against the cheapest."""
    rival = min(front.baselines, key=lambda other: other.test[front.cost])
    found = [
        entry
        for entry in shown
        if entry.test[front.cost] < (1 - _WORTH_SAYING) * rival.test[front.cost]
        and entry.quality >= rival.quality - _BARGAIN
    ]
    if not found:
        return None
    entry = max(found, key=lambda each: each.quality)
    saving = 1 - entry.test[front.cost] / rival.test[front.cost]
    claim = _claim(entry, rival)
    chance = f", p = {claim.p_value:.2g}" if claim is not None else ""
    less = 100 * (rival.quality - entry.quality)
    return Finding(
        f"A stitched network ({entry.name}) needs {100 * saving:.0f}% fewer "
        f"{axis_of(front.cost).words} than {_the(rival)}, the cheapest alternative, and its "
        f"{words_of(front.metric)} is {abs(less):.1f} points {'lower' if less >= 0 else 'higher'} "
        f"({_percent(entry)} against {_percent(rival)}{chance}).",
        entry,
    )


def _rivals(front: Front, entry: Entry) -> list[tuple[Claim, Entry]]:
    by_name = {other.name: other for other in front.baselines}
    return [(claim, by_name[claim.baseline]) for claim in entry.claims]


def _claim(entry: Entry, rival: Entry) -> Claim | None:
    return next((claim for claim in entry.claims if claim.baseline == rival.name), None)


def _names(front: Front) -> list[str]:
    return [_the(entry) for entry in front.front]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _the(entry: Entry) -> str:
    if entry.kind == "cascade":
        return f"a cascade of the parents ({entry.name.removeprefix('cascade ')})"
    return f"the {entry.name}" if entry.kind in ("ensemble", "duo") else entry.name


def _percent(entry: Entry) -> str:
    return f"{100 * entry.quality:.1f}%"
