"""The lines of a traced subnetwork's ``forward``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from torch import fx

from optuna_stitch.results.export.expressions import expression, is_size, passes_on
from optuna_stitch.results.export.tracing import Home, Traced
from optuna_stitch.stitching.genotype import Switch

# First letter of a value's name: by the parent whose layers compute it or, of stitches, read it.
_LETTERS = {"a": "x", "b": "y", "ensemble": "z"}
_SIZE = "n"


def needed(graph: fx.Graph) -> list[fx.Node]:
    """A graph's nodes without those that the output does not need, such as checks of shapes."""
    found: dict[fx.Node, None] = {}
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        changes = schema is not None and schema.is_mutable
        if node.op == "output" or changes or any(user in found for user in node.users):
            found[node] = None
    return list(found)[::-1]


class Lines:
    """Write one line an operator, and keep account of the names.

    A value that is read for the last time hands its name on to what is made of it, or is deleted,
    so that nothing is in memory that is no longer needed.

    Args:
        traced: The subnetwork.
        names: Expressions of its weights, by their nodes.
        switches: The supernetwork's.
    """

    def __init__(
        self, traced: Traced, names: Mapping[fx.Node, str], switches: Sequence[Switch]
    ) -> None:
        self._traced = traced
        self._names = dict(names)
        self._switches = switches
        self._device = f"{next(iter(traced.views))}.device"
        self._taken: set[str] = set()

    def write(self, nodes: Sequence[fx.Node]) -> Iterator[str]:
        """The lines, without indentation.

        Args:
            nodes: What `needed` returned.

        Raises:
            ExportError: If an operator cannot be written.
        """
        last_read = {read: node for node in nodes for read in _sources(node)}
        home: Home | None = None
        for node in nodes:
            if node.op in ("placeholder", "get_attr"):
                self._names.setdefault(node, node.name)
            elif node.op == "output":
                yield f"return {self._names[_sources(node)[0]]}"
            elif passes_on(node) is None:
                here = self._traced.home(node) or home
                if here is not None and here != home:
                    yield f"# {self._heading(here)}"
                    home = here
                over = [read for read in _sources(node) if last_read[read] is node]
                yield from self._assign(node, home, over, is_read=node in last_read)

    def _assign(
        self, node: fx.Node, home: Home | None, over: Sequence[fx.Node], *, is_read: bool
    ) -> Iterator[str]:
        """The line of one operator, and what is deleted after it.

        Args:
            node: The operator.
            home: Where it belongs.
            over: Values that nothing reads after it.
            is_read: Whether anything reads its own.
        """
        text = expression(node, lambda read: self._names[_source(read)], self._device)
        free = [self._names[read] for read in over if self._names[read] in self._taken]
        if is_read:
            letter = _SIZE if is_size(node) else self._letter(home)
            name = next((name for name in free if name[0] == letter), self._new(letter))
            text = f"{name} = {text}"
            self._names[node] = name
            self._taken.add(name)
            free = [other for other in free if other != name and other[0] != _SIZE]
        yield text
        if free:
            yield f"del {', '.join(free)}"
            self._taken.difference_update(free)

    def _new(self, letter: str) -> str:
        names = (f"{letter}{number or ''}" for number in count())
        return next(name for name in names if name not in self._taken)

    def _letter(self, home: Home | None) -> str:
        if home is None:
            return _LETTERS["a"]
        into = self._switches[home.number].into
        return _LETTERS[into if home.owner == "stitch" else home.owner]

    def _heading(self, home: Home) -> str:
        if home.owner == "stitch":
            return f"stitch {home.number}: {self._switches[home.number].name}"
        if home.owner == "ensemble":
            return "ensemble: the mean of both parents' class probabilities"
        return f"{home.owner}.{home.block}" if home.block else home.owner


def _source(node: fx.Node) -> fx.Node:
    """What computes a node's value, which others may only pass on."""
    before = passes_on(node)
    return node if before is None else _source(before)


def _sources(node: fx.Node) -> list[fx.Node]:
    if passes_on(node) is not None:
        return []
    return list(dict.fromkeys(_source(read) for read in node.all_input_nodes))
