"""Write a traced subnetwork as one Python file that needs torch and safetensors only.

``torch.fx`` can print a graph as code too, but with a name for every value, weights as aliases at
the head, the device of the trace burnt in, and modules that it does not know as pickles.
"""

from __future__ import annotations

import keyword
import math
import operator
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch.export.graph_signature import InputKind

from optuna_stitch.export.exit_code import exit_code
from optuna_stitch.export.trace import Home, Stage, Traced
from optuna_stitch.stitching.genotype import LETTERS, SIDES, Switch
from optuna_stitch.stitching.subnetwork import CascadeModule
from optuna_stitch.utils.errors import ExportError
from optuna_stitch.utils.text import listed_text

CODE = "network.py"

WEIGHTS = "network.safetensors"

_FILE = '''\
"""{title}.

{about}This file needs torch and safetensors. Beside it:

    from network import load_network

    network = load_network()
    {result} = network({inputs})  # {shapes}

`config.json` says how images are resized and normalized. {operators} one line per
operator; comments name the part of parent {parents} that the lines come from, and the stitches
between them. {values}

To fine-tune, train `network.parameters()`. The network computes the same in train and in eval
mode: BatchNorm statistics are buffers that stay as they are, and there is no dropout.
"""

from __future__ import annotations

{imports}

aten = torch.ops.aten

# Tensors that are not trained.
BUFFERS: set[str] = {buffers}


class Part(nn.Module):
    """Weights and parts by name; `part[0]` is the part named "0"."""

    def __getitem__(self, name: int | str) -> Part:
        return getattr(self, str(name))


class Network(Part):
    """Parts and weights are those whose names are given."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
{state}        for name, weight in weights.items():
            *path, last = name.split(".")
            part = self
            for step in path:
                if step not in part._modules:
                    part.add_module(step, Part())
                part = part[step]
            weight = weight.clone()  # aligned in memory, which the last bits of results depend on
            if last in BUFFERS or name in BUFFERS:
                part.register_buffer(last, weight)
            else:
                part.register_parameter(last, nn.Parameter(weight))

{methods}


def load_network(folder: str | Path = Path(__file__).parent) -> Network:
    """Make the network with the weights in `network.safetensors`."""
    return Network(load_file(Path(folder) / "network.safetensors")).eval()
'''

_METHOD = '''\
def {name}(self, {arguments}) -> {type}:
    """Return {answer} for {shapes}."""
{body}
'''

_IMPORTS = """\
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn"""

_WENT_ON = "        self.went_on = 0  # how many images of the last batch went on\n"

_CASCADE = """\
A cascade: `first` answers all images; those that it is unsure of go on together, `rest` answers
them from what is computed already, and both answers are averaged. `network.went_on` says how many
went on.

"""

# The part that holds tensors which belong to no parent: tracing met them on its way.
_CONSTANTS = "constants"

# First letter of a value's name: by the parent whose layers compute it or, of stitches, read it.
_LETTERS = {**dict(zip(LETTERS, "xyuvwpqr", strict=True)), "ensemble": "z"}

# First letter of a number's name, such as a size.
_SIZE = "n"

# Where a region's own graph stands among the arguments; what it reads comes behind.
_REGIONS: dict[Any, int] = {wrap_with_set_grad_enabled: 1, wrap_with_autocast: 4}

_ENABLED = 2  # where autocast says whether it is on

_SYMBOLS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}

# Where slices of everything end.
_END = sys.maxsize

# Operators that return their input outside of training, as their last argument says.
_DROPOUTS = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.alpha_dropout.default,
    torch.ops.aten.feature_alpha_dropout.default,
)


def write_code(traced: Traced) -> tuple[str, dict[str, Tensor]]:
    """Write the source and collect the weights that it uses.

    Args:
        traced: The subnetwork.

    Returns:
        The text of ``network.py``, and the tensors of ``network.safetensors`` by name.

    Raises:
        ExportError: If it uses an operator that is not torch's own.
    """
    kept: dict[object, _Weight] = {}
    supergraph = traced.subnetwork.supergraph
    answer = f"logits {_batch(supergraph.output_shape)}"
    is_both = bool(traced.stages[0].answers)
    if is_both:
        answer = " and ".join(
            f'"{side}": logits {_batch(supergraph.shape_of(side))}' for side in SIDES
        )
    shapes = ", ".join(f"{name} {_batch(view.input_size)}" for name, view in traced.views.items())
    count = len(traced.subnetwork.sides)
    heads = "both parents'" if count == 2 else f"{count} parents'"
    bodies = [_body(stage, supergraph.switches, heads, kept) for stage in traced.stages]
    if isinstance(traced.module, CascadeModule):
        methods = [
            exit_code(
                traced.module.exit,
                supergraph.output_shape,
                list(traced.views),
                answer=answer,
                shapes=shapes,
            ),
            _method(
                "first", traced.stages[0], bodies[0], f"{answer}, and what `rest` takes,", shapes
            ),
            _method("rest", traced.stages[1], bodies[1], answer, "what goes on"),
        ]
    else:
        methods = [_method("forward", traced.stages[0], bodies[0], answer, shapes)]
    buffers = ", ".join(f'"{name}"' for name in _buffer_names(kept.values()))
    text = _FILE.format(
        result="answers" if is_both else "logits",
        title=" ".join(traced.title.split()).replace("\\", "/").replace('"', "'"),
        inputs=", ".join(traced.views),
        shapes=shapes,
        buffers=f"{{{buffers}}}" if buffers else "set()",
        methods=textwrap.indent("\n".join(methods), " " * 4).rstrip(),
        parents=listed_text(supergraph.sides, "or"),
        values=f"Values {', '.join(f'{_LETTERS[s]} belong to {s}' for s in supergraph.sides)}."
        if len(supergraph.sides) > 2
        else "Values x belong to a, values y to b.",
        **_wording(is_cascade=len(methods) > 1),
    )
    return text, {weight.name: weight.tensor for weight in kept.values()}


def _wording(*, is_cascade: bool) -> dict[str, str]:
    """What differs between files of cascades and of other networks."""
    if not is_cascade:
        return {"about": "", "operators": "`forward` has", "imports": _IMPORTS, "state": ""}
    return {
        "about": _CASCADE,
        "operators": "`first` and `rest` have",
        "imports": f"import math\n{_IMPORTS}\nfrom torch.nn import functional as F",
        "state": _WENT_ON,
    }


def _body(
    stage: Stage, switches: Sequence[Switch], heads: str, kept: dict[object, _Weight]
) -> list[str]:
    """The lines of a stage.

    Args:
        stage: The stage.
        switches: The supernetwork's.
        heads: Of how many parents an ensemble is.
        kept: Weights of earlier stages by their identity; those of this one are added.
    """
    nodes = _needed(inline_regions(stage.program.graph_module))
    weights = _weights_of(stage.program, nodes, kept)
    names = {node: _accessor(weight.name) for node, weight in weights.items()}
    lines = list(_Lines(stage, switches, heads, names).write(nodes))
    roots = sorted({weight.name.partition(".")[0] for weight in weights.values()})
    if roots:
        lines.insert(0, f"{', '.join(roots)} = {', '.join(f'self.{root}' for root in roots)}")
    return lines


def _method(name: str, stage: Stage, body: Sequence[str], answer: str, shapes: str) -> str:
    """The text of a stage's method, without indentation."""
    several = name == "first"
    named = "dict[str, Tensor]" if stage.answers else "Tensor"
    return _METHOD.format(
        name=name,
        arguments=", ".join(f"{name}: Tensor" for name in stage.inputs),
        type="tuple[Tensor, ...]" if several else named,
        answer=answer,
        shapes=shapes,
        body=textwrap.indent("\n".join(body), " " * 4),
    )


def _batch(shape: Sequence[int]) -> str:
    """The shape of a batch: ``(N, 3, 32, 32)``."""
    return f"({', '.join(['N', *map(str, shape)])})"


@dataclass(frozen=True)
class _Weight:
    """A tensor of a network.

    Args:
        name: Its dotted path, ``a.layer1.0.conv1.weight``.
        tensor: Its own memory, contiguous.
        trained: Whether it is a parameter.
    """

    name: str
    tensor: Tensor
    trained: bool


def _weights_of(
    program: torch.export.ExportedProgram,
    nodes: Sequence[fx.Node],
    kept: dict[object, _Weight],
) -> dict[fx.Node, _Weight]:
    """Find the tensors that some of a program's nodes stand for; tied ones are one.

    Args:
        program: What ``torch.export`` made.
        nodes: Those of its nodes that are needed.
        kept: Tensors that are found already, by their identity; more are added.

    Raises:
        ExportError: If a node stands for something that is no tensor.
    """
    found: dict[fx.Node, _Weight] = {}
    held = {**program.constants, **program.state_dict}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in nodes:
        if node.op != "placeholder" or specs[node.name].kind == InputKind.USER_INPUT:
            continue
        spec = specs[node.name]
        path = str(spec.target)
        tensor = held.get(path)
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"The network holds {path}, a {type(tensor).__name__}, which a file of weights "
                "cannot. Export it as `program`."
            )
        # tied weights are one tensor under several paths
        identity = tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        if identity not in kept:
            own = tensor.detach().cpu().contiguous().clone()
            name = _free(_name(path), {weight.name for weight in kept.values()})
            kept[identity] = _Weight(name, own, spec.kind == InputKind.PARAMETER)
        found[node] = kept[identity]
    return found


def _name(path: str) -> str:
    """The name in a parent, or one among the constants."""
    first, _, rest = path.partition(".")
    return path if first in (*LETTERS, "stitches") and rest else f"{_CONSTANTS}.{path}"


def _free(name: str, taken: Set[str]) -> str:
    """A name, or one like it: both stages of a cascade may call tensors of their own alike."""
    names = (f"{name}_{number}" if number else name for number in count())
    return next(name for name in names if name not in taken)


def _buffer_names(weights: Iterable[_Weight]) -> list[str]:
    """Names by which buffers are told from parameters: their last part where that is enough."""
    names = {weight.name: weight.trained for weight in weights}
    last = {name.rpartition(".")[2] for name, trained in names.items() if trained}
    buffers = [name for name, trained in names.items() if not trained]
    return sorted({_shortest(name, last) for name in buffers})


def _shortest(name: str, taken: set[str]) -> str:
    last = name.rpartition(".")[2]
    return name if last in taken else last


def _accessor(name: str) -> str:
    """The expression that reads a weight: ``a.layer1[0].conv1.weight``."""
    first, *rest = name.split(".")
    return first + "".join(map(_access, rest))


def _access(part: str) -> str:
    if part.isdecimal() and str(int(part)) == part:
        return f"[{part}]"
    plain = part.isidentifier() and not keyword.iskeyword(part)
    return f".{part}" if plain else f"[{part!r}]"


def inline_regions(program: fx.GraphModule) -> fx.Graph:
    """Copy a program's graph, and dissolve regions that do not change what is computed.

    ``torch.export`` keeps what a network computes without gradients, or without autocast, in
    graphs of their own.

    Args:
        program: The graph module of an exported program.

    Returns:
        A graph in which the operators of such regions stand like all others.
    """
    graph = fx.Graph()
    graph.output(_copy(program, graph, {}))
    return graph


def _copy(owner: fx.GraphModule, graph: fx.Graph, made: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of a graph module, and return what stands for its output."""
    for node in owner.graph.nodes:
        if node in made:
            continue
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda read: made[read])
        if _is_region(node):
            place = _REGIONS[node.target]
            region = getattr(owner, str(node.args[place].target))
            inputs = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
            read = [made[outer] for outer in node.args[place + 1 :]]
            made[node] = _copy(region, graph, dict(zip(inputs, read, strict=True)))
        elif node.op == "call_function" and isinstance(made.get(node.args[0]), (tuple, list)):
            # one of the values that a region returns
            made[node] = made[node.args[0]][node.args[1]]
        else:
            made[node] = graph.node_copy(node, lambda read: made[read])
    raise AssertionError("a graph ends with its output")


def _is_region(node: fx.Node) -> bool:
    autocast = node.target is wrap_with_autocast
    return node.target in _REGIONS and not (autocast and node.args[_ENABLED])


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """A graph's nodes without those that the output does not need, such as checks of shapes."""
    found: dict[fx.Node, None] = {}
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        changes = schema is not None and schema.is_mutable
        if node.op == "output" or changes or any(user in found for user in node.users):
            found[node] = None
    return list(found)[::-1]


class _Lines:
    """Write one line per operator, and keep account of the names.

    At its last use a value hands its name on to what is made of it, or it is deleted, so that
    nothing stays in memory that is no longer needed.

    Args:
        stage: What is computed.
        switches: The supernetwork's.
        heads: Of how many parents an ensemble is.
        names: Expressions of its weights, by their nodes.
    """

    def __init__(
        self, stage: Stage, switches: Sequence[Switch], heads: str, names: Mapping[fx.Node, str]
    ) -> None:
        self._heads = heads
        self._stage = stage
        self._names = dict(names)
        self._switches = switches
        self._device = f"{stage.inputs[0]}.device"
        self._taken: set[str] = set()

    def write(self, nodes: Sequence[fx.Node]) -> Iterator[str]:
        """The lines, without indentation.

        Args:
            nodes: What `_needed` returned.

        Raises:
            ExportError: If an operator cannot be written.
        """
        last_read = {read: node for node in nodes for read in _sources(node)}
        home: Home | None = None
        for node in nodes:
            if node.op in ("placeholder", "get_attr"):
                self._names.setdefault(node, node.name)
            elif node.op == "output":
                returned: Any = node.args[0]
                values = [self._names[_source(read)] for read in returned]
                if self._stage.answers:
                    pairs = zip(self._stage.answers, values, strict=True)
                    named = ", ".join(f'"{name}": {value}' for name, value in pairs)
                    yield f"return {{{named}}}"
                else:
                    yield f"return {', '.join(values)}"
            elif _passes_on(node) is None:
                here = self._stage.home(node) or home
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
        text = _expression(node, lambda read: self._names[_source(read)], self._device)
        free = [self._names[read] for read in over if self._names[read] in self._taken]
        if is_read:
            letter = _SIZE if _is_size(node) else self._letter(home)
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
            return f"ensemble: the mean of {self._heads} class probabilities"
        return f"{home.owner}.{home.block}" if home.block else home.owner


def _source(node: fx.Node) -> fx.Node:
    """What computes a node's value, which others may only pass on."""
    before = _passes_on(node)
    return node if before is None else _source(before)


def _sources(node: fx.Node) -> list[fx.Node]:
    if _passes_on(node) is not None:
        return []
    return list(dict.fromkeys(_source(read) for read in node.all_input_nodes))


def _passes_on(node: fx.Node) -> fx.Node | None:
    """The value that a node only passes on: dropout when not training, a slice of everything."""
    dropout = node.target in _DROPOUTS and node.args[2] is False
    everything = node.target is torch.ops.aten.slice.Tensor and node.args[2:] == (0, _END)
    if not dropout and not everything:
        return None
    value = node.args[0]
    return value if isinstance(value, fx.Node) else None


def _is_size(node: fx.Node) -> bool:
    """Whether a node's value is a number, as sizes are, and no tensor."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int))


def _expression(node: fx.Node, name: Callable[[fx.Node], str], device: str) -> str:
    """The expression that computes a node.

    Args:
        node: A call of an operator.
        name: Says what the value of another node is called.
        device: An expression for the device that tensors are made on.

    Raises:
        ExportError: If the operator is not torch's own.
    """
    target = node.target

    def text(value: Any) -> str:
        return _literal(value, name, device)

    arguments = [text(value) for value in node.args]
    arguments += [f"{key}={text(value)}" for key, value in node.kwargs.items()]
    if target is torch.ops.aten.sym_size.int:
        return f"{arguments[0]}.shape[{arguments[1]}]"
    if target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if target is operator.neg:
        return f"-{arguments[0]}"
    if target in _SYMBOLS:
        return f" {_SYMBOLS[target]} ".join(arguments)
    return f"{_function(node)}({', '.join(arguments)})"


def _function(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        packet = target.overloadpacket
        name = f"aten.{packet.__name__}"
        alternatives = [other for other in packet.overloads() if "out" not in other]
        return name if alternatives == ["default"] else f"{name}.{target._overloadname}"
    name = getattr(target, "__name__", str(target))
    if getattr(torch, name, None) is target:  # torch.sym_max and its like
        return f"torch.{name}"
    raise ExportError(
        f"The network uses the operator {target}, which is not torch's own, so that it cannot be "
        "written as Python code. Export it as `program`."
    )


def _literal(value: Any, name: Callable[[fx.Node], str], device: str) -> str:
    if isinstance(value, fx.Node):
        return name(value)
    if isinstance(value, (list, tuple)):
        parts = [_literal(part, name, device) for part in value]
        return f"[{', '.join(parts)}]"
    if isinstance(value, torch.device):
        return device
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    # dtypes, layouts and memory formats print as what they are in code
    return repr(value)
