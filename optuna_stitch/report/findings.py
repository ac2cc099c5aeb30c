"""What a front bears out of stitched networks, in a sentence or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna_stitch.report.entries import STITCHED, Entries, Entry, PairedComparison
from optuna_stitch.utils.text import listed_text, p_value_text, percent_text, points_text

# Networks whose qualities differ by no more than this are about as good.
_NEAR = 0.01

# A smaller share of the cost saved is not worth a headline.
_WORTH_SAYING = 0.05

# A network that loses more against the cheapest alternative is not worth any saving.
_LOSS = 0.05

# A worst case that differs by less is the same in whole percent.
_SAME = 0.005


@dataclass(frozen=True)
class Finding:
    """What a report opens with.

    Args:
        sentence: The finding; two sentences where each front bears out another one.
        entry: The network that it is about, of two the one of the stronger finding; None where it
            is about none.
    """

    sentence: str
    entry: Entry | None


def find(front: Entries) -> Finding:
    """What was found: on each front the strongest of these that holds.

    A network that is significantly better than a baseline that costs as much or more; one that is
    as good and cheaper; one that is cheaper than all baselines and loses little; one that is
    better than a baseline, but not told apart from another one that costs no more. At fixed cost,
    where nothing can be skipped, cascades are no alternative, neither stitched nor plain.

    Args:
        front: With the entries.
    """
    if front.sides:
        return _of_two_jobs(front)
    settings = _settings(front)
    claims = [_strongest(setting) for setting in settings]
    found = [claim for claim in claims if claim is not None]
    if not found:
        return _nothing(front, settings)
    entry = min(found, key=lambda claim: claim.rank).entry
    said = [
        claim.text if claim else setting.nothing
        for setting, claim in zip(settings, claims, strict=True)
    ]
    if len(settings) == 1:
        return Finding(f"{_capital(said[0])}.", entry)
    if said[0] == said[1]:
        where = f"both {settings[0].words} and {settings[1].words}"
        return Finding(f"{_capital(where)}, {said[0]}.", entry)
    sentences = [
        f"{_capital(setting.words)}, {text}." for setting, text in zip(settings, said, strict=True)
    ]
    return Finding(" ".join(sentences), entry)


def _of_two_jobs(front: Entries) -> Finding:
    """What networks that answer both questions are worth: how much cheaper than alternatives.

    Those that retain 99% of what each parent reaches alone come before those that retain 95%.
    """
    setting = _setting("", front, front.entries, lambda entry: entry.on_front)
    for loss in (_NEAR, _LOSS):
        kept = [entry for entry in setting.shown if entry.quality >= 1 - loss]
        if not kept:
            continue
        entry = min(kept, key=setting.cost)
        as_good = [b for b in setting.baselines if b.quality >= min(entry.quality, 1.0)]
        rival = min(as_good, key=setting.cost)
        saving = setting.saving(entry, rival)
        if saving > _WORTH_SAYING:
            return Finding(
                f"A network that answers both questions ({entry.name}) retains "
                f"{_percent(entry)} of what each parent reaches alone, or more, and needs "
                f"{_fewer(front, saving)} than {rival.name}{_side_by_side(rival)}"
                f"{_questions(front, entry)}{_less_retained(setting, entry)}.",
                entry,
            )
    cheapest = [b for b in setting.baselines if b.quality >= 1 - _LOSS]
    rival = min(cheapest, key=setting.cost)
    return Finding(
        "Nothing was gained: no network that answers both questions retains "
        f"{percent_text(1 - _LOSS, 0)} of what each parent reaches alone for clearly fewer "
        f"{front.unit(front.cost).words} than {rival.name}{_side_by_side(rival)}.",
        max(setting.shown, key=lambda entry: entry.quality, default=None),
    )


def _side_by_side(rival: Entry) -> str:
    return " side by side" if rival.kind == "parent" else f" ({_percent(rival)} retained)"


def _questions(front: Entries, entry: Entry) -> str:
    """What a network reaches at each question, beside the parent alone."""
    place = front.entries.index(entry)
    said = []
    for (side, own), comparison in zip(front.sides.items(), entry.comparisons, strict=True):
        alone, mine = own.entries[0], own.entries[place]
        told = "told" if comparison.significant else "not told"
        said.append(
            f"{own.unit(own.metric).words} of {side} is {_percent(mine)} against "
            f"{_percent(alone)}, {told} from chance (p = {p_value_text(comparison.p_value)})"
        )
    return f"; {'; '.join(said)}"


def _less_retained(setting: _Setting, entry: Entry) -> str:
    """The best linear probe that costs no more, where there is one; it retains less."""
    probes = [
        other
        for other in setting.baselines
        if other.kind == "probe" and setting.cost(other) <= setting.cost(entry)
    ]
    if not probes:
        return ""
    best = max(probes, key=lambda probe: probe.quality)
    fewer = _fewer(setting.front, setting.saving(best, setting.baselines[0]))
    return (
        f". Of linear probes that cost no more, the best ({best.name}) retains {_percent(best)}, "
        f"for {fewer} than both parents"
    )


@dataclass(frozen=True)
class _Setting:
    """Networks that one chooses among, by what their costs mean.

    Args:
        words: What a sentence calls it; empty where there is only one.
        front: With all entries.
        shown: Stitched networks on the front of this setting.
        baselines: What they are compared with.
        best: Those of them that are on the front.
    """

    words: str
    front: Entries
    shown: list[Entry]
    baselines: list[Entry]
    best: list[Entry]

    def cost(self, entry: Entry) -> float:
        return entry.test[self.front.cost]

    def saving(self, entry: Entry, rival: Entry) -> float:
        """The share of the rival's cost that an entry saves."""
        return 1 - self.cost(entry) / self.cost(rival)

    def rivals(self, entry: Entry) -> list[tuple[PairedComparison, Entry]]:
        """The baselines that an entry was compared with."""
        by_name = {other.name: other for other in self.baselines}
        return [
            (comparison, by_name[comparison.baseline])
            for comparison in entry.comparisons
            if comparison.baseline in by_name
        ]

    @property
    def nothing(self) -> str:
        """What is said beside a finding on the other front."""
        clearly = "clearly " if self.shown else ""
        return f"no stitched network is {clearly}worth its cost"


@dataclass(frozen=True)
class _Claim:
    """What is found in a setting.

    Args:
        rank: Of its kind, 0 for the strongest.
        text: In words, without a full stop.
        entry: The network that it is about.
    """

    rank: int
    text: str
    entry: Entry


def _settings(front: Entries) -> list[_Setting]:
    """At fixed cost and on average; one where no network is a cascade."""
    if not front.has_cascades:
        return [_setting("", front, front.entries, lambda entry: entry.on_front)]
    averaged = any(front.cost in entry.worst for entry in front.entries if entry.is_cascade)
    # of costs that are paid for all that is kept ready, such as memory, there is no average
    words = ("at fixed cost", "on average") if averaged else ("without cascades", "with cascades")
    fixed = [entry for entry in front.entries if not entry.is_cascade]
    return [
        _setting(words[0], front, fixed, lambda entry: entry.on_fixed_front),
        _setting(words[1], front, front.entries, lambda entry: entry.on_front),
    ]


def _setting(
    words: str, front: Entries, entries: Sequence[Entry], on_front: Callable[[Entry], bool]
) -> _Setting:
    baselines = [entry for entry in entries if entry.kind != STITCHED]
    return _Setting(
        words,
        front,
        [entry for entry in entries if entry.kind == STITCHED and on_front(entry)],
        baselines,
        [entry for entry in baselines if on_front(entry)],
    )


def _strongest(setting: _Setting) -> _Claim | None:
    """The strongest claim that holds; of cascades, if one of that strength is of a cascade."""
    cascades = [entry for entry in setting.shown if entry.is_cascade]
    for rank, kind in enumerate((_clearly_better, _cheaper, _cheapest, _better)):
        for shown in (cascades, setting.shown):
            found = kind(setting, shown)
            if found is not None:
                return _Claim(rank, *found)
    return None


def _clearly_better(setting: _Setting, shown: Sequence[Entry]) -> tuple[str, Entry] | None:
    """The same as `_better`, where no baseline that costs no more may well be as good."""
    return _better(setting, [entry for entry in shown if not _caveat(setting, entry)])


def _better(setting: _Setting, shown: Sequence[Entry]) -> tuple[str, Entry] | None:
    """A network that is significantly better than a baseline that costs as much or more."""
    found = [
        ((rival in setting.best, rival.quality, comparison.difference), entry, rival, comparison)
        for entry in shown
        for comparison, rival in setting.rivals(entry)
        if comparison.significant
        and comparison.difference > 0
        and setting.cost(entry) <= setting.cost(rival)
        and not _outdone(setting, entry, rival)
    ]
    if not found:
        return None
    # of several rivals the best one says most
    _, entry, rival, comparison = max(found, key=lambda each: each[0])
    front, saving = setting.front, setting.saving(entry, rival)
    less = saving >= _WORTH_SAYING
    needs = f"needs {_fewer(front, saving)}" if less else "costs no more"
    worst = _worst(front, entry, "fewer" if less else "less")
    text = (
        f"{_a(entry)} has a higher {front.unit(front.metric).words} than {_the(rival)} "
        f"({_percent(entry)} against {_percent(rival)}, p = {p_value_text(comparison.p_value)} "
        f"after correction) and {needs}{f', {worst}' if worst else ''}{_caveat(setting, entry)}"
    )
    return text, entry


def _outdone(setting: _Setting, entry: Entry, rival: Entry) -> bool:
    """Whether another baseline that costs no more than a rival is as good as an entry."""
    return any(
        other.quality >= entry.quality and setting.cost(other) <= setting.cost(rival)
        for other in setting.baselines
    )


def _caveat(setting: _Setting, entry: Entry) -> str:
    """The best baseline that costs no more and may well be as good, where there is one."""
    found = [
        (rival, comparison)
        for comparison, rival in setting.rivals(entry)
        if not comparison.significant and setting.cost(rival) <= setting.cost(entry)
    ]
    if not found:
        return ""
    rival, comparison = max(found, key=lambda each: each[0].quality)
    return (
        f"; {_the(rival)} costs no more and is not told apart from it "
        f"({_percent(rival)}, p = {p_value_text(comparison.p_value)})"
    )


def _cheaper(setting: _Setting, shown: Sequence[Entry]) -> tuple[str, Entry] | None:
    """A network that is about as good as the cheapest such baseline, for less.

    One that is at least as good as both parents comes before one that saves more.
    """
    found: list[tuple[float, Entry, Entry]] = []
    for entry in shown:
        as_good = [other for other in setting.baselines if other.quality >= entry.quality - _NEAR]
        for rival in sorted(as_good, key=setting.cost)[:1]:
            saving = setting.saving(entry, rival)
            if rival.quality <= entry.quality + _NEAR and saving > _WORTH_SAYING:
                found.append((saving, entry, rival))
    if not found:
        return None
    front = setting.front
    parents = [other.quality for other in setting.baselines if other.kind == "parent"]
    best = max(parents, default=0.0)
    saving, entry, rival = max(found, key=lambda each: (each[1].quality >= best, each[0]))
    comparison = entry.comparison(rival)
    chance = ""
    if comparison is not None:
        told = "can tell" if comparison.significant else "cannot tell"
        chance = (
            f", which {front.images} test images {told} from chance "
            f"(p = {p_value_text(comparison.p_value)})"
        )
    worst = _worst(front, entry, "fewer")
    text = (
        f"{_a(entry)} needs {_fewer(front, saving)} than {_the(rival)}"
        f"{f' ({worst})' if worst else ''}; its {front.unit(front.metric).words} of "
        f"{_percent(entry)} differs from that one's {_percent(rival)} by "
        f"{points_text(entry.quality - rival.quality, 1)} points{chance}"
    )
    return text, entry


def _cheapest(setting: _Setting, shown: Sequence[Entry]) -> tuple[str, Entry] | None:
    """A network that costs less than all baselines, and loses little against the cheapest."""
    rival = min(setting.baselines, key=setting.cost)
    found = [
        entry
        for entry in shown
        if setting.cost(entry) < (1 - _WORTH_SAYING) * setting.cost(rival)
        and entry.quality >= rival.quality - _LOSS
    ]
    if not found:
        return None
    front = setting.front
    entry = max(found, key=lambda each: each.quality)
    comparison = entry.comparison(rival)
    chance = f", p = {p_value_text(comparison.p_value)}" if comparison is not None else ""
    less = rival.quality - entry.quality
    worst = _worst(front, entry, "fewer")
    text = (
        f"{_a(entry)} needs {_fewer(front, setting.saving(entry, rival))} than {_the(rival)}, the "
        f"cheapest alternative{f' ({worst})' if worst else ''}, and its "
        f"{front.unit(front.metric).words} is {percent_text(abs(less), 1, sign='')} points "
        f"{'lower' if less >= 0 else 'higher'} "
        f"({_percent(entry)} against {_percent(rival)}{chance})"
    )
    return text, entry


def _nothing(front: Entries, settings: Sequence[_Setting]) -> Finding:
    """That stitched networks are of no use here."""
    where = " or ".join(setting.words for setting in settings)
    shown = [entry for entry in front.stitched if any(entry in s.shown for s in settings)]
    if shown:
        lie = "stitched networks lie" if len(shown) > 1 else "stitched network lies"
        return Finding(
            f"{len(shown) if len(shown) > 1 else 'A'} {lie} on the front, but none is clearly "
            "better than the parents and their combinations at the same cost, or clearly cheaper "
            f"at the same {front.unit(front.metric).words}{f', be it {where}' if where else ''}.",
            max(shown, key=lambda entry: entry.quality),
        )
    best = [entry for entry in front.baselines if any(entry in s.best for s in settings)]
    cascades = [entry for entry in best if entry.kind == "cascade"]
    named = [_the(entry) for entry in best if len(cascades) == 1 or entry.kind != "cascade"]
    if len(cascades) > 1:
        named.append("cascades of the parents")
    several = len(best) > 1
    return Finding(
        f"No stitched network is worth its cost{f', be it {where}' if where else ''}: "
        f"{listed_text(named)} {'are' if several else 'is'} at least as good and "
        f"{'cost' if several else 'costs'} no more.",
        None,
    )


def _worst(front: Entries, entry: Entry, fewer: str) -> str:
    """What a cascade costs at worst, beside both parents; empty for other networks."""
    worst = entry.worst.get(front.cost) if entry.is_cascade else None
    both = next((other for other in front.baselines if other.name == "ensemble"), None)
    if worst is None or both is None:
        return ""
    saving = 1 - worst / both.test[front.cost]
    if abs(saving) < _SAME:
        return f"at worst as many as {front.every} parents"
    relation = fewer if saving > 0 else "more"
    return f"at worst {percent_text(abs(saving), 0)} {relation} than {front.every} parents"


def _fewer(front: Entries, saving: float) -> str:
    return f"{percent_text(saving, 0)} fewer {front.unit(front.cost).words}"


def _a(entry: Entry) -> str:
    return f"a stitched {'cascade' if entry.is_cascade else 'network'} ({entry.name})"


def _the(entry: Entry) -> str:
    if entry.kind == "cascade":
        return f"a cascade of the parents ({entry.name.removeprefix('cascade ')})"
    return f"the {entry.name}" if entry.kind in ("ensemble", "duo") else entry.name


def _percent(entry: Entry) -> str:
    return percent_text(entry.quality, 1)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
