"""Networks and pairs as tables: what can be stitched, and where."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from rich import box
from rich.table import Table
from rich.text import Text

from optuna_stitch.models.graph import NetworkGraph, capture_graph
from optuna_stitch.models.parent import load_parent
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.stitching.matching import Match, select_points
from optuna_stitch.stitching.settings import PointKind
from optuna_stitch.utils.errors import OptunaStitchError, first_line
from optuna_stitch.utils.progress import track
from optuna_stitch.utils.text import millions_text, shape_text

_MILLION = 1e6


@dataclass(frozen=True)
class Surveyed:
    """What is known of a network before it is stitched, or why it cannot be captured.

    Args:
        name: The network's name.
        parameters: Number of parameters.
        macs: Multiply-accumulates per image.
        input_shape: Shape of one image, ``3×224×224``.
        layouts: Kinds of its points' layouts, the most frequent first.
        points: Number of points.
        dominators: How many of them everything flows through.
        blocks: How many of them are outputs of blocks.
        captured_by: How the graph was captured.
        reason: Why the network cannot be captured, so that nothing else is known; empty where it
            can.
    """

    name: str
    parameters: int = 0
    macs: int = 0
    input_shape: str = ""
    layouts: str = ""
    points: int = 0
    dominators: int = 0
    blocks: int = 0
    captured_by: str = ""
    reason: str = ""


def survey(names: Sequence[str], *, show_progress_bar: bool = False) -> list[Surveyed]:
    """Make networks from the zoos, with random weights, and capture them.

    Args:
        names: Their names.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per name, in their order.
    """
    return [
        _survey(name)
        for name in track(names, "Capture networks", show_progress_bar=show_progress_bar)
    ]


def write_survey(found: Sequence[Surveyed], path: Path) -> None:
    """Write a survey as a CSV file, one row per network.

    Args:
        found: What `survey` returned.
        path: The file.

    Raises:
        OSError: If it cannot be written.
    """
    table = pd.DataFrame([asdict(network) for network in found])
    # the figures of a network that could not be captured are unknown, not 0
    unknown = table["captured_by"] == ""
    figures = ["parameters", "macs", "points", "dominators", "blocks"]
    table[figures] = table[figures].astype("Int64").mask(unknown)
    table.to_csv(path, index=False)


def survey_tables(found: Sequence[Surveyed]) -> list[Table]:
    """A survey as tables for the screen.

    Args:
        found: What `survey` returned.

    Returns:
        A table of the networks that can be stitched, and one of those that cannot; without those
        that would be empty.
    """
    captured = [network for network in found if not network.reason]
    failed = [network for network in found if network.reason]
    tables = []
    if captured:
        table = _table("network", "params, M", "MACs, M", "input", "layouts", "points", "by")
        table.caption = "points: all / dominators / blocks. by: what captured the graph"
        for network in captured:
            table.add_row(
                Text(network.name),
                f"{network.parameters / _MILLION:,.1f}",
                f"{network.macs / _MILLION:,.1f}",
                network.input_shape,
                network.layouts,
                f"{network.points}/{network.dominators}/{network.blocks}",
                network.captured_by,
            )
        tables.append(table)
    if failed:
        table = _table("cannot be captured", "reason")
        for network in failed:
            table.add_row(Text(network.name), Text(network.reason))
        tables.append(table)
    return tables


def families_table(families: Mapping[str, Sequence[str]]) -> Table:
    """Families of networks, with the beginnings of their names.

    Args:
        families: Names by family.
    """
    table = _table("family", "networks", "names begin with")
    for family, names in families.items():
        folder = family if family.endswith("/") else ""
        starts = dict.fromkeys(_start(name.removeprefix(folder)) for name in names)
        table.add_row(Text(family), str(len(names)), Text("  ".join(starts)))
    return table


def describe(graph: NetworkGraph) -> str:
    """A network's sizes, in one line.

    Args:
        graph: The network.
    """
    return (
        f"{graph.name}: {millions_text(graph.macs)} MACs, {graph.parameters:,} parameters, "
        f"{graph.classes} classes, images {shape_text(graph.input_shape)}, "
        f"{_count(graph, 'all')} points ({_count(graph, 'dominators')} dominators, "
        f"{_count(graph, 'blocks')} blocks)"
    )


def matches_table(matches: Sequence[Match]) -> Table:
    """The matches of a pair: a row for each point, with the stitch that reads it.

    Args:
        matches: Pairs of points, in topological order of both networks.
    """
    table = _table("match", "of", "point", "layout", "depth", "stitch", "MACs, M", "params")
    for number, match in enumerate(matches, start=1):
        into_b, into_a = stitches_of(match)
        sides = (("a", match.a, "a → b", into_b), ("b", match.b, "b → a", into_a))
        for side, point, direction, stitch in sides:
            table.add_row(
                str(number) if side == "a" else "",
                side,
                Text(point.name),
                str(point.layout),
                f"{point.depth:.2f}",
                direction,
                f"{stitch.macs / _MILLION:,.3f}",
                f"{sum(weight.numel() for weight in stitch.parameters()):,}",
            )
    return table


def stitches_of(match: Match) -> tuple[Stitch, Stitch]:
    """Both stitches of a match, without memory for their weights.

    Args:
        match: The match.

    Returns:
        The stitch ``a → b``, and ``b → a``.
    """
    with torch.device("meta"):
        return Stitch(match.a.layout, match.b.layout), Stitch(match.b.layout, match.a.layout)


def excluded_table(graphs: Mapping[str, NetworkGraph], *, every: bool = False) -> Table:
    """The values that cannot be points, counted by reason.

    Args:
        graphs: The parents by side.
        every: Whether to list every value instead.
    """
    table = _table("of", "value" if every else "values", "cannot be a point, because it")
    for side, graph in graphs.items():
        if every:
            for name, reason in graph.excluded.items():
                table.add_row(side, Text(name), Text(reason))
        else:
            for reason, count in Counter(graph.excluded.values()).most_common():
                table.add_row(side, str(count), Text(reason))
    return table


def _survey(name: str) -> Surveyed:
    try:
        parent = load_parent(name)
        # without running it, as `Parent.graph` does to compare
        graph = capture_graph(parent.module, parent.view.input_size, name, output=parent.output)
    except OptunaStitchError as error:
        return Surveyed(name, reason=str(error).removeprefix(f"{name} "))
    except Exception as error:  # making a network runs its own code, which may raise anything
        return Surveyed(name, reason=f"cannot be made: {first_line(error)}")
    kinds = Counter(point.layout.kind for point in graph.points)
    return Surveyed(
        name=name,
        parameters=graph.parameters,
        macs=graph.macs,
        input_shape=shape_text(graph.input_shape),
        layouts=" ".join(kind for kind, _ in kinds.most_common()),
        points=_count(graph, "all"),
        dominators=_count(graph, "dominators"),
        blocks=_count(graph, "blocks"),
        captured_by=graph.captured_by,
    )


def _count(graph: NetworkGraph, kind: PointKind) -> int:
    return len(select_points(graph, kind))


def _start(name: str) -> str:
    """What a name begins with, up to its first size: ``resnet`` of ``resnet50_gn``."""
    return re.split(r"\d\d|_", name, maxsplit=1)[0]


# The least widths of columns whose words may continue in a second line. With these, names of
# usual length and their figures fit into 80 characters.
_LONG = {
    "network": 12,
    "layouts": 7,
    "cannot be captured": 17,
    "reason": 30,
    "family": 12,
    "names begin with": 30,
    "point": 12,
    "value": 20,
    "cannot be a point, because it": 30,
}

_SHORT = {"of", "layout", "stitch", "by"}


def _table(*columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left"
    )
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in _LONG or column in _SHORT else "right",
            no_wrap=column not in _LONG,
            overflow="fold",
            min_width=_LONG.get(column),
        )
    return table
