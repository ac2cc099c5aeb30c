"""Capture a network as one functional ``torch.fx`` graph with one input.

Tracing with ``torch.fx`` keeps timm's own leaf functions and modules whole, so that the graph
stays at the level at which people read a network: ``layer1.0.conv1``, not forty operators. What it
cannot trace, ``torch.export`` mostly can, at the level of operators. Nothing downstream knows
which it was.
"""

from __future__ import annotations

import copy
import inspect
import operator
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from optuna_stitch.utils.errors import CaptureError, first_line

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul,
}


def make_functional(captured: fx.GraphModule) -> None:
    """Replace in-place operations by those that return a new tensor.

    What reads the changed tensor afterwards reads the operation's result instead.

    Args:
        captured: The graph, changed in place. Modules that work in place are replaced by copies,
            since they may be the user's own.
    """
    modules = dict(captured.named_modules())
    place = {node: index for index, node in enumerate(captured.graph.nodes)}
    for node in captured.graph.nodes:
        if not _works_in_place(node, modules):
            continue
        if node.op == "call_module":
            _replace_by_copy(captured, str(node.target), modules)
        elif node.op == "call_method":
            node.target = node.target.rstrip("_")
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = _functional_overload(node.target)
        else:
            node.target = _OPERATORS[node.target]
        changed = node.args[0]
        if isinstance(changed, fx.Node) and _changes_its_input(node, modules):
            changed.replace_all_uses_with(
                node,
                delete_user_cb=lambda user, node=node: place[user] > place[node],  # type: ignore[misc]
            )
    captured.recompile()


def _works_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        parts = modules[str(node.target)].modules()
        return any(getattr(part, "inplace", False) for part in parts)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("__")
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.endswith("_") and node.target._schema.is_mutable
    return bool(node.kwargs.get("inplace")) or node.target in _OPERATORS


def _changes_its_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """A normalization with its activation inside, say, works in place on its own result only."""
    return node.op != "call_module" or bool(getattr(modules[str(node.target)], "inplace", False))


def _functional_overload(target: torch._ops.OpOverload) -> Any:
    """``aten.add.Tensor`` for ``aten.add_.Tensor``."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name[:-1])
    return getattr(packet, target._overloadname)


def _replace_by_copy(captured: fx.GraphModule, path: str, modules: dict[str, nn.Module]) -> None:
    changed = copy.deepcopy(modules[path])
    part: Any
    for part in changed.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    captured.set_submodule(path, changed)


Capture = Literal["fx", "export"]

# A batch size that no other dimension is likely to have, so that dimension 0 is told apart.
TRACED_BATCH = 3


def capture_fx(module: nn.Module, name: str, output: str | None = None) -> fx.GraphModule:
    """Trace a network symbolically, in eval mode.

    The graph shares its parameters with ``module``. Nodes know the module that made them
    (``meta["module"]``) and the modules whose output they are (``meta["output_of"]``, outermost
    first).

    Args:
        module: The network. Its forward takes one batch of images; other arguments keep their
            defaults.
        name: The network's name, for errors.
        output: Key of the output to keep, where the network returns a dictionary.

    Raises:
        CaptureError: If its output has no such key, or is no tensor.
        Exception: Whatever the network's own code raises where it cannot be traced.
    """
    module.eval()
    tracer = _Tracer()
    graph = tracer.trace(module, concrete_args=_defaults(module.forward))
    for path, node in tracer.outputs:
        node.meta.setdefault("output_of", []).insert(0, path)
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["module"] = next(reversed(stack), "")
    captured = fx.GraphModule(module, graph)
    return _finish(captured, name, output)


def capture_export(
    module: nn.Module, input_shape: tuple[int, int, int], name: str, output: str | None = None
) -> fx.GraphModule:
    """Export a network's operators, with a free batch size.

    Args:
        module: The network.
        input_shape: Shape (C, H, W) of one image.
        name: The network's name, for errors.
        output: Key of the output to keep, where the network returns a dictionary.

    Raises:
        CaptureError: If its output has no such key, or is no tensor.
        Exception: Whatever torch raises where it cannot export.
    """
    module.eval()
    images = torch.zeros(TRACED_BATCH, *input_shape)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (images,), dynamic_shapes=({0: batch},), strict=False)
    return capture_program(ProgramModule(program), name, output)


class ProgramModule(nn.Module):
    """An exported program as a module, which can be put into eval mode like any other.

    Args:
        program: The program, exported in eval mode.

    Attributes:
        returns: Structure of what it returns.
        batch_size: Number of images that it takes at once; None, if any.
        input_shape: Shape (C, H, W) of the images it takes.

    Raises:
        CaptureError: If it takes anything but one batch of images in float32.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.returns = program.call_spec.out_spec
        self.program = program.module()
        inputs = [n.meta.get("val") for n in self.program.graph.nodes if n.op == "placeholder"]
        images = inputs[0] if len(inputs) == 1 else None
        if not isinstance(images, Tensor) or images.dim() != 4 or images.dtype != torch.float32:
            takes = ", ".join(map(_input_text, inputs)) or "nothing"
            raise CaptureError(
                f"The exported program takes {takes}. Export a module that takes one batch of "
                "images, N×C×H×W in float32."
            )
        batch, *shape = images.shape
        if not all(isinstance(size, int) for size in shape):
            raise CaptureError(
                f"The exported program takes images of any size ({_input_text(images)}). Export "
                "it for one size: only its dimension 0 may be dynamic."
            )
        self.batch_size = batch if isinstance(batch, int) else None
        self.input_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])

    def forward(self, images: Tensor) -> Any:
        """Run the program.

        Args:
            images: ``(N, C, H, W)``.
        """
        return self.program(images)

    def train(self, mode: bool = True) -> ProgramModule:
        """Do nothing: a program stays in the mode that it was exported in.

        Args:
            mode: Is ignored.
        """
        return self


def _input_text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'×'.join(map(str, value.shape))} in {str(value.dtype).removeprefix('torch.')}"


def capture_program(module: ProgramModule, name: str, output: str | None = None) -> fx.GraphModule:
    """The graph of an exported program, with the same notes on nodes as `capture_fx` makes.

    Args:
        module: The program.
        name: The network's name, for errors.
        output: Key of the output to keep, where the program returns a dictionary.

    Raises:
        CaptureError: If its output has no such key, or is no tensor.
    """
    unlifted = module.program
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    last_of: dict[str, fx.Node] = {}
    for node in unlifted.graph.nodes:
        if node.op == "output":
            leaves = [copied[leaf] for leaf in node.all_input_nodes]
            graph.output(tree_unflatten(leaves, module.returns))
        elif node.op != "call_module":  # a guard on the inputs' shapes, which returns nothing
            made = copied[node] = graph.node_copy(node, lambda n: copied[n])
            # (path, class) of the modules around the operator, outermost first
            around = (node.meta.get("nn_module_stack") or {}).values()
            paths = [path for path, _ in around if path]
            made.meta = {"module": paths[-1] if paths else ""}
            last_of.update(dict.fromkeys(paths, made))
    for path in sorted(last_of, key=lambda path: path.count(".")):
        last_of[path].meta.setdefault("output_of", []).append(path)
    return _finish(fx.GraphModule(unlifted, graph), name, output)


class _Tracer(fx.Tracer):
    """A tracer that stops at timm's leaves and remembers what every module returned."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._leaves = tuple(get_notrace_modules())
        self.outputs: list[tuple[str, fx.Node]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs.append((self.path_of_module(m), output.node))
        return output


def _defaults(forward: Callable[..., Any]) -> dict[str, Any]:
    """Fix every argument but the first at its default, so that the images stay the one input."""
    arguments = list(inspect.signature(forward).parameters.values())
    return {
        argument.name: argument.default
        for argument in arguments[1:]
        if argument.default is not inspect.Parameter.empty
    }


def _finish(captured: fx.GraphModule, name: str, output: str | None) -> fx.GraphModule:
    _keep_output(captured.graph, name, output)
    make_functional(captured)
    captured.eval().requires_grad_(False)
    return captured


def _keep_output(graph: fx.Graph, name: str, key: str | None) -> None:
    """Make the graph return one tensor."""
    node = graph.output_node()
    returned = node.args[0]
    if isinstance(returned, dict):
        if key is None and len(returned) == 1:
            key = next(iter(returned))
        if key not in returned:
            asked = f"no output {key!r}" if key else "several outputs"
            raise CaptureError(
                f"{name} has {asked}: it returns a dictionary of {', '.join(returned)}. Say which "
                "with `output`."
            )
        returned = returned[key]
    elif isinstance(returned, (tuple, list)) and len(returned) == 1:
        returned = returned[0]
    if not isinstance(returned, fx.Node):
        raise CaptureError(
            f"{name} returns {type(returned).__name__}, not one tensor of logits. Wrap it in a "
            "module that returns them."
        )
    node.args = (returned,)


def drop_checks(captured: fx.GraphModule) -> None:
    """Erase assertions about shapes, the placeholders of fixed arguments, and what only they use.

    Call it after the network has run on images of its size: the assertions have then served.

    Args:
        captured: The graph, changed in place.
    """
    graph = captured.graph
    for node in reversed(list(graph.nodes)):
        fixed = node.op == "placeholder" and node is not next(iter(graph.nodes))
        check = node.op == "call_function" and "assert" in getattr(node.target, "__name__", "")
        if (fixed or check) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.recompile()


def capture_error(
    name: str, module: nn.Module, input_shape: tuple[int, ...], *errors: Exception
) -> CaptureError:
    """The error for a network that cannot be captured in any way.

    Args:
        name: The network's name.
        module: The network.
        input_shape: Shape (C, H, W) of the images that it was given.
        *errors: What tracing with ``torch.fx`` raised, and what ``torch.export`` did; or what an
            exported program raised.
    """
    text = " ".join(map(str, errors))
    wanted = re.search(r"to have (\d+) channels, but got (\d+) channels", text)
    if wanted and int(wanted[2]) == input_shape[0]:
        if wanted[1] not in ("1", "3", "4"):
            return CaptureError(
                f"{name} takes images of {wanted[1]} channels; an image has 1 (grey), 3 (RGB) or "
                "4 (RGBA)."
            )
        return CaptureError(
            f"{name} takes images of {wanted[1]} channels, but its view has {wanted[2]}. Give "
            f"`input_size: [{wanted[1]}, {input_shape[1]}, {input_shape[2]}]`, and a `mean` and "
            "`std` for each channel."
        )
    fixed = re.search(r"(?:size\(\)|shape)\[0\] (?:==|to be equal to) (\d+)", text)
    batch = module.batch_size if isinstance(module, ProgramModule) else fixed and fixed[1]
    if batch is not None:
        return CaptureError(
            f"{name} was exported for batches of {batch} only. Export it again with "
            "`dynamic_shapes=({0: torch.export.Dim('batch')},)`."
        )
    tools = ("torch.fx", "torch.export") if len(errors) > 1 else ("It raises",)
    said = ". ".join(
        f"{tool}: {first_line(error)}" for tool, error in zip(tools, errors, strict=True)
    )
    return CaptureError(
        f"{name} cannot be captured as a graph. {said}. Give another image size (`input_size`), "
        "if that is the reason; in code of your own, change what is named here (a graph cannot "
        "branch on what images hold), or export it by torch.export and give the `.pt2`."
    )
