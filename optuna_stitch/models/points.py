"""Find a graph's points: its distinct values that can be read and replaced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from optuna_stitch.models.cost import NodeCost, image_dependent
from optuna_stitch.models.layout_inference import infer_layouts, operation_name
from optuna_stitch.models.layouts import Layout

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Point:
    """A tensor in a parent's graph that can be read or replaced.

    Args:
        node: Name of the graph's node that computes it.
        name: Its readable name: the path of the module whose output it is.
        layout: How the feature lies in its tensor.
        depth: Relative position among the network's points, 0 (first) to 1 (last).
        block: Whether it is the output of a block (a residual block, an encoder layer, …).
        dominator: Whether everything that reaches the output flows through it.

    Example:
        >>> point = a.graph().points[-1]
        >>> point.name, str(point.layout), point.depth, point.block, point.dominator
        ('global_pool', 'NCHW 96×1×1', 1.0, False, True)
    """

    node: str
    name: str
    layout: Layout
    depth: float
    block: bool
    dominator: bool


def find_points(
    captured: fx.GraphModule, module: nn.Module, costs: dict[str, NodeCost]
) -> tuple[tuple[Point, ...], dict[str, str]]:
    """Find every point of a captured network.

    Many nodes carry the same value (identity, dropout in eval mode, reshapes); one point stands
    for all of them, at the first node that computes it.

    Args:
        captured: The graph.
        module: The network it was captured from.
        costs: Shapes and costs by node name.

    Returns:
        The points in topological order, and the reasons, by name, why other values are no points.
    """
    depends = image_dependent(captured, costs)
    groups = _distinct_values(captured, costs, depends)
    layouts, reasons = infer_layouts(captured, costs)
    blocks = _block_paths(module)
    silent = {path for path, part in module.named_modules() if _passes_on(part)}
    output_storage = costs[str(captured.graph.output_node().args[0])].storage
    dominators = _dominators(groups, depends)

    found: list[tuple[int, fx.Node, str]] = []
    excluded: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for storage, group in groups.items():
        first = group[0]
        name = _name(group, blocks, silent)
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        if storage == output_storage:
            excluded[name] = "is what the network returns"
        elif first.op == "placeholder":
            excluded[name] = "is the image itself"
        elif first.name not in layouts:
            excluded[name] = reasons[first.name]
        else:
            found.append((storage, first, name))
    last = max(len(found) - 1, 1)
    points = tuple(
        Point(
            node=node.name,
            name=name,
            layout=layouts[node.name],
            depth=position / last,
            block=any(path in blocks for part in groups[storage] for path in _outputs_of(part)),
            dominator=storage in dominators,
        )
        for position, (storage, node, name) in enumerate(found)
    )
    return points, excluded


def _distinct_values(
    captured: fx.GraphModule, costs: dict[str, NodeCost], depends: set[fx.Node]
) -> dict[int, list[fx.Node]]:
    """Group the tensors that depend on the images by the memory they are views of."""
    groups: dict[int, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        if node in depends and costs[node.name].shape is not None:
            groups.setdefault(costs[node.name].storage, []).append(node)
    return groups


def _dominators(groups: dict[int, list[fx.Node]], depends: set[fx.Node]) -> set[int]:
    """Storages of the values that no edge of the graph jumps over.

    In a topological order a node lies on every path from input to output exactly if no edge leads
    from before it to behind it.
    """
    position = {node: index for index, nodes in enumerate(groups.values()) for node in nodes}
    furthest = 0
    found: set[int] = set()
    for index, (storage, nodes) in enumerate(groups.items()):
        if furthest <= index:
            found.add(storage)
        for node in nodes:
            readers = _readers(node, position, depends)
            furthest = max(furthest, *(position[reader] for reader in readers), 0)
    return found


def _readers(node: fx.Node, position: dict[fx.Node, int], depends: set[fx.Node]) -> set[fx.Node]:
    """Tensors made from this one, through tuples where it is packed into one."""
    readers: set[fx.Node] = set()
    for user in node.users:
        if user in position:
            readers.add(user)
        elif user in depends:
            readers |= _readers(user, position, depends)
    return readers


def _block_paths(module: nn.Module) -> set[str]:
    """Paths of the blocks: modules with parts of their own, directly inside a container."""
    return {
        f"{path}.{child}" if path else child
        for path, part in module.named_modules()
        if isinstance(part, _CONTAINERS)
        for child, block in part.named_children()
        if not isinstance(block, _CONTAINERS) and any(True for _ in block.children())
    }


def _outputs_of(node: fx.Node) -> list[str]:
    paths: list[str] = node.meta.get("output_of", [])
    return paths


def _passes_on(module: nn.Module) -> bool:
    """Whether a module only returns what one of its parts, or its input, is already."""
    return (
        isinstance(module, (*_CONTAINERS, nn.Identity, nn.Dropout))
        or type(module).__name__ == "DropPath"
    )


def _name(group: list[fx.Node], blocks: set[str], silent: set[str]) -> str:
    """The block that returns this value, else the outermost module, else the operation."""
    paths = [path for node in group for path in _outputs_of(node) if path not in silent]
    of_blocks = [path for path in paths if path in blocks]
    if of_blocks:
        return max(of_blocks, key=lambda path: path.count("."))
    if paths:
        return min(paths, key=lambda path: path.count("."))
    node = group[0]
    operation = operation_name(node)
    module = node.meta.get("module", "")
    return f"{module}.{operation}" if module and node.op != "placeholder" else operation
