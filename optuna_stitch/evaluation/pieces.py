"""A supernetwork in pieces of ONNX, which onnxruntime times here or on another device.

Operations that always run together are one piece, so that the runtime fuses in it what it fuses in
whole networks. The time of a piece stands at its last operation; the others have none.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.errors import ArtifactError, ConfigError, first_line
from optuna_stitch.utils.files import write_text
from optuna_stitch.utils.onnx import onnx_of, quiet

# What times pieces, wherever they are.
SCRIPT = "measure.py"

# Which pieces there are.
LIST = "pieces.json"

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Piece:
    """Operations that always run together, whichever subnetwork it is.

    Args:
        root: Place of the last one, the only one whose value others read.
        places: All of them, in order of computation.
    """

    root: int
    places: tuple[int, ...]


def pieces_of(supergraph: Supergraph) -> list[Piece]:
    """Cut a supernetwork where subnetworks may part.

    An operation belongs to the piece of what reads it, where that is one piece and reads it under
    any genotype: where no stitch may replace its value.

    Args:
        supergraph: The computation of the supernetwork.

    Returns:
        The pieces, in order of computation.
    """
    readers: dict[int, set[int]] = {}
    for place, operation in enumerate(supergraph.operations):
        for read in operation.inputs:
            readers.setdefault(read, set()).add(place)
    heads = {supergraph.head(side) for side in supergraph.sides}
    root_of: dict[int, int] = {}
    for place in range(len(supergraph.operations) - 1, -1, -1):
        around = {root_of[reader] for reader in readers.get(place, ())}
        ends = place in supergraph.targets or place in heads or len(around) != 1
        root_of[place] = place if ends else around.pop()
    found: dict[int, list[int]] = {}
    for place in range(len(supergraph.operations)):
        found.setdefault(root_of[place], []).append(place)
    return [Piece(root, tuple(found[root])) for root in sorted(found)]


def check_onnx() -> None:
    """Raise where a package is missing.

    Raises:
        ConfigError: Names what to install.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Latencies of onnxruntime need {', '.join(missing)}: pip install "
            "'optuna-stitch[onnx]'. Or take torch's: `latency: {runtime: torch}`."
        )


def write_pieces(supergraph: Supergraph, folder: Path, settings: LatencySettings) -> None:
    """Write the pieces of a supernetwork, and a script that times them.

    Args:
        supergraph: The computation of the supernetwork.
        folder: Where to write; made if it is not there.
        settings: For which batch size and number of threads.

    Raises:
        ConfigError: If a package is missing, or an operator has no counterpart in ONNX.
        OSError: If they cannot be written.
    """
    check_onnx()
    from optuna_stitch.evaluation import piece_timer

    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, dict[str, str]] = {}
    for size in sorted({settings.batch_size, 1}):
        files: dict[str, str] = {"": f"{size}-nothing.onnx"}
        _save(_nothing(), folder / files[""])
        for number, (name, model) in enumerate(_models(supergraph, size)):
            files[name] = f"{size}-{number:03}.onnx"
            _save(model, folder / files[name])
        listed[str(size)] = files
    described = {
        "supernetwork": supergraph.content_hash(),
        "threads": settings.threads or torch.get_num_threads(),
        "pieces": listed,
    }
    source = Path(piece_timer.__file__).read_text(encoding="utf-8")
    write_text(folder / SCRIPT, source)
    write_text(folder / LIST, json.dumps(described, indent=1))


def time_here(folder: Path, rounds: int) -> dict[str, Any]:
    """Time pieces on this machine, as the script does elsewhere.

    Args:
        folder: Where `write_pieces` wrote them.
        rounds: How often each runs.

    Returns:
        What the script writes into its table.

    Raises:
        ConfigError: If onnxruntime lacks an operator.
    """
    from optuna_stitch.evaluation import piece_timer

    threads = json.loads((folder / LIST).read_text(encoding="utf-8"))["threads"]
    try:
        return piece_timer.time_pieces(folder, rounds, threads)
    except Exception as error:  # of onnxruntime, whose kinds have no common base
        raise ConfigError(
            f"onnxruntime cannot run a piece of the supernetwork ({first_line(error)}). Take "
            "torch's latencies: `latency: {runtime: torch}`."
        ) from error


def read_table(table: Mapping[str, Any], supergraph: Supergraph, where: str) -> Times:
    """Check a table of times, and put each at its operation.

    Args:
        table: What the script wrote.
        supergraph: The computation of the supernetwork that it shall be of.
        where: What to call it in messages.

    Raises:
        ArtifactError: If it is no such table, not whole, or of another supernetwork.
    """
    again = "Write the pieces anew with `optuna-stitch latency export`, and run measure.py again."
    try:
        sizes = {int(size): dict(column) for size, column in table["milliseconds"].items()}
        made_for, threads = str(table["supernetwork"]), int(table["threads"])
        device = f"{table['device']}, {table['runtime']}"
        for column in sizes.values():
            if not all(math.isfinite(time) and time >= 0 for time in column.values()):
                raise ValueError("a time is no positive number")
        batch_size = max(sizes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{where} is no table that measure.py writes ({first_line(error)}). {again}"
        ) from error
    if made_for != supergraph.content_hash():
        raise ArtifactError(
            f"{where} is of another supernetwork ({made_for}; this one is "
            f"{supergraph.content_hash()}). {again}"
        )
    known = {operation.name for operation in supergraph.operations}
    wanted = {supergraph.operations[piece.root].name for piece in pieces_of(supergraph)}
    free = _free(supergraph)
    for size in {batch_size, 1}:
        left = sorted(wanted - free - sizes.get(size, {}).keys())
        if left:
            raise ArtifactError(
                f"{where} is not whole: of {size} image{'s' if size > 1 else ''} at once it lacks "
                f"{len(left)} of {len(wanted - free)} pieces, such as {left[0]}. {again}"
            )
    columns = {
        size: {name: sizes[size].get(name, 0.0) for name in sorted(known)}
        for size in {batch_size, 1}
    }
    return Times(batch_size, threads, columns, device)


@dataclass(frozen=True)
class Times:
    """Milliseconds of operations.

    Args:
        batch_size: Images at once.
        threads: Number of threads.
        milliseconds: By the number of images at once, and by name of the operation.
        device: What measured them.
    """

    batch_size: int
    threads: int
    milliseconds: Mapping[int, dict[str, float]]
    device: str


def _free(supergraph: Supergraph) -> set[str]:
    """Names of operations whose values cost nothing: images, constants and sizes."""
    images = [
        torch.zeros(1, *view.input_size, device=supergraph.device) for view in supergraph.views
    ]
    free = set()
    constant: set[int] = set()
    program = _whole(supergraph)
    with torch.no_grad():
        for place, value in program.values(images):
            operation = supergraph.operations[place]
            if operation.owner != "input" and constant.issuperset(operation.inputs):
                constant.add(place)
            if operation.owner == "input" or place in constant or not _tensors(value):
                free.add(operation.name)
    return free


def _whole(supergraph: Supergraph, outputs: Sequence[int] | None = None) -> Program:
    """All parents and all stitches, each on the raw feature that it reads."""
    steps = [(place, operation.inputs) for place, operation in enumerate(supergraph.operations)]
    wanted = range(len(steps)) if outputs is None else outputs
    return Program(supergraph.operations, steps, list(wanted))


def _tensors(value: Any) -> list[Tensor]:
    """A value as tensors; nothing, where it is a number or a size."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, Tensor) for v in value):
        return list(value)
    return []


class _Roots(nn.Module):
    """What pieces hand over, of all images: the values of their last operations.

    Args:
        supergraph: The computation of the supernetwork.
        roots: Places of the operations.
    """

    def __init__(self, supergraph: Supergraph, roots: Sequence[int]) -> None:
        super().__init__()
        graphs = [graph.module for graph in supergraph.graphs.values()]
        self.parts = nn.ModuleList([*graphs, supergraph.stitches])  # the tracer looks for them
        self._program = _whole(supergraph, roots)

    def forward(self, *images: Tensor) -> list[Tensor]:
        """The tensors, in order.

        Args:
            *images: One tensor ``(N, C, H, W)`` per view.
        """
        return [tensor for value in self._program.run(images) for tensor in _tensors(value)]


def _models(supergraph: Supergraph, size: int) -> list[tuple[str, Any]]:
    """The pieces that cost something, by the name of their last operation.

    Args:
        supergraph: The computation of the supernetwork.
        size: Images at once.
    """
    free = _free(supergraph)
    roots = [
        piece.root
        for piece in pieces_of(supergraph)
        if supergraph.operations[piece.root].name not in free
    ]
    images = tuple(
        torch.zeros(size, *view.input_size, device=supergraph.device) for view in supergraph.views
    )
    with torch.no_grad():
        values = _whole(supergraph, roots).run(images)
    names = [
        [f"{supergraph.operations[root].name}#{k}" for k in range(len(_tensors(value)))]
        for root, value in zip(roots, values, strict=True)
    ]
    try:
        with torch.no_grad(), quiet():
            module = _Roots(supergraph, roots).eval()
            program = torch.export.export(module, images, strict=False)
        model = onnx_of(program, [name for some in names for name in some])
    except Exception as error:  # of the parents' own code, and of converters
        raise ConfigError(
            f"The supernetwork cannot be converted to ONNX ({first_line(error)}). Take torch's "
            "latencies: `latency: {runtime: torch}`."
        ) from error
    shapes = {
        name: tensor
        for some, value in zip(names, values, strict=True)
        for name, tensor in zip(some, _tensors(value), strict=True)
    }
    given = [one.name for one in model.graph.input]
    shapes |= dict(zip(given, images, strict=True))
    return [
        (supergraph.operations[root].name, _cut(model, some, shapes))
        for root, some in zip(roots, names, strict=True)
    ]


def _cut(model: Any, outputs: Sequence[str], shapes: Mapping[str, Tensor]) -> Any:
    """The part of a model between values whose shapes are known.

    Args:
        model: The ``onnx.ModelProto``.
        outputs: Names of the values that the part computes.
        shapes: Values at which it begins, and these, with examples.
    """
    from onnx import helper

    maker = {name: node for node in model.graph.node for name in node.output}
    weights = {weight.name: weight for weight in model.graph.initializer}
    order = {id(node): place for place, node in enumerate(model.graph.node)}
    nodes: dict[int, Any] = {}
    inputs: dict[str, None] = {}
    used: dict[str, Any] = {}
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name in weights:
            used[name] = weights[name]
        elif name in shapes and name not in outputs:
            inputs[name] = None
        elif name in maker and id(maker[name]) not in nodes:
            node = maker[name]
            nodes[id(node)] = node
            waiting += _reads(node)
    graph = helper.make_graph(
        sorted(nodes.values(), key=lambda node: order[id(node)]),
        "piece",
        [_described(name, shapes[name]) for name in inputs],
        [_described(name, shapes[name]) for name in outputs],
        list(used.values()),
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _reads(node: Any) -> list[str]:
    """Names of what a node reads, its branches included."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    within = [name for graph in inner for one in graph.node for name in _reads(one)]
    return [name for name in (*node.input, *within) if name]


def _described(name: str, example: Tensor) -> Any:
    """What ONNX says of a value."""
    from onnx import TensorProto, helper

    kinds = {
        torch.float32: TensorProto.FLOAT,
        torch.float64: TensorProto.DOUBLE,
        torch.float16: TensorProto.FLOAT16,
        torch.int64: TensorProto.INT64,
        torch.int32: TensorProto.INT32,
        torch.bool: TensorProto.BOOL,
    }
    return helper.make_tensor_value_info(name, kinds[example.dtype], list(example.shape))


def _nothing() -> Any:
    """A model that computes nothing, to learn what a call costs."""
    from onnx import helper

    described = [_described(name, torch.zeros(1)) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "nothing", described[:1], described[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _save(model: Any, path: Path) -> None:
    path.write_bytes(model.SerializeToString())
