"""Check that a captured graph is the network that it was captured from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_stitch.models.adopt import hooks_of
from optuna_stitch.models.capture import ProgramModule
from optuna_stitch.models.cost import unchanged
from optuna_stitch.models.layout_inference import operation_name
from optuna_stitch.utils.errors import CaptureError, first_line

# Answers are the same up to this share of their largest number, and of how far those to two
# images lie apart: rounding differs with the size of a batch, a hundred times less than that in
# twenty families of networks.
_OF_SIZE, _OF_SPREAD = 1e-5, 1e-3

# What to do, by operations that are often the cause.
_ADVICE = {
    "dropout": "Write `F.dropout(x, p, training=self.training)`, or use `nn.Dropout`.",
    "attention": "Pass `dropout_p=0.0` where the module is not in training.",
    "norm": "Give its BatchNorm running statistics (`track_running_stats=True`).",
    "squeeze": "Name the dimensions that it drops, or write `x.flatten(1)`.",
}


def check_capture(
    module: nn.Module,
    graph: fx.GraphModule,
    input_shape: tuple[int, ...],
    name: str,
    key: str | None,
) -> None:
    """Compare a graph with its network on a random batch, twice and at two batch sizes.

    Args:
        module: The network.
        graph: What was captured of it.
        input_shape: Shape (C, H, W) of one image.
        name: The network's name, for errors.
        key: Key of the output that counts, where the network returns a dictionary.

    Raises:
        CaptureError: If its answers are random, depend on the other images of a batch or on
            earlier calls, or differ from those of the graph; names the operation or the module.
            Also if it answers probabilities.
    """
    fixed = module.batch_size if isinstance(module, ProgramModule) else None
    images = random_images(max(fixed or 2, 2), input_shape)
    try:
        _compare(module, graph, images, fixed or 2, name, key)
    except CaptureError:
        # networks may multiply rounding by millions, and float64 has a billionth of it
        try:
            wide, wide_graph = copy.deepcopy(module).double(), copy.deepcopy(graph).double()
            _compare(wide, wide_graph, images.double(), fixed or 2, name, key)
        except Exception:  # not all code runs in float64
            same = False
        else:
            same = True
        if not same:
            raise


def _compare(
    module: nn.Module,
    graph: fx.GraphModule,
    images: Tensor,
    count: int,
    name: str,
    key: str | None,
) -> None:
    """Compare as `check_capture` says, in the precision of the images ``(N, C, H, W)``.

    The network is given the first ``count`` of them.
    """
    batch = images[:count]
    with torch.no_grad(), torch.random.fork_rng(devices=[]), unchanged(module), unchanged(graph):
        traced = _Traced(graph)
        with _Randomness(traced) as randomness:
            together = traced.run(images)
        for label in randomness.found:
            raise CaptureError(
                f"{name} draws random numbers, in {label}: it gives other answers each time it "
                f"runs. {_advice(label, module)}"
            )
        if _are_probabilities(together):
            raise CaptureError(
                f"{name} returns probabilities: they sum to one. Ensembles and cascades need "
                "logits. Leave its softmax out, or return the logarithm, "
                "`probabilities.clamp(min=1e-12).log()`, whose softmax says the same."
            )
        close = tolerance(together)
        # the network may write to its images, which the graph leaves alone
        first, second = (answer_of(module(batch.clone()), key) for _ in range(2))
        if not close(first, second):
            label = _difference(_parts(module, batch), _parts(module, batch))
            raise CaptureError(
                f"{name} gives other answers each time it runs, because of {label}: it draws "
                "random numbers, or keeps something from call to call. A graph can do neither."
            )
        if not close(first, together[: len(batch)]):
            hooks = hooks_of(module)
            why = _difference(_parts(module, batch), _nodes(graph, batch))
            raise CaptureError(
                f"The graph of {name} gives other answers than the network, because of "
                f"{f'its hook {hooks[0]}' if hooks else why}. Do in `forward` what hooks do, and "
                "keep what depends on the images out of Python's own control flow and state."
            )
        alone_traced = _Traced(graph)
        try:
            alone = alone_traced.run(images[:1])
        except Exception as error:  # the network's own code may raise anything
            raise CaptureError(
                f"{name} fails on a single image, in {alone_traced.label}: {first_line(error)}. "
                f"{_advice(alone_traced.label, module)}"
            ) from error
        if not close(alone, together[:1]):
            label = _difference(_nodes(graph, images[:1]), _nodes(graph, images))
            raise CaptureError(
                f"What {name} answers to an image depends on the others in its batch, because of "
                f"{label}. {_advice(label, module)}"
            )


def _are_probabilities(answers: Tensor) -> bool:
    """Whether those of every image, ``(N, classes, ...)``, are positive and sum to one."""
    sums = answers.float().sum(dim=1)
    return bool((answers >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def random_images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of different strength and brightness, so that images differ in every statistic.

    Args:
        count: Number N of images, 2 or more.
        shape: Shape (C, H, W) of one.

    Returns:
        ``(N, C, H, W)``, the same at every call.
    """
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    rising = torch.linspace(0, 1, count)[:, None, None, None]
    return noise * (1 - rising / 2) + rising


def tolerance(answers: Tensor) -> Callable[[Tensor, Tensor], bool]:
    """Whether two tensors are the same but for rounding.

    Args:
        answers: ``(N, ...)`` to different images, which say how much answers differ.
    """
    finite = answers.float().nan_to_num(0, 0, 0)
    spread = finite - finite.mean(0, keepdim=True) if finite.dim() else finite
    slack = _OF_SIZE * float(finite.abs().max()) + _OF_SPREAD * float(spread.abs().max())

    def close(one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and torch.allclose(
            one.float(), other.float(), rtol=0, atol=slack, equal_nan=True
        )

    return close


def answer_of(returned: Any, key: str | None) -> Tensor:
    """The tensor that counts of what a network returns.

    Args:
        returned: A tensor, or one in a dictionary or a sequence.
        key: Its key in the dictionary; the first, if None.
    """
    if isinstance(returned, Mapping):
        returned = returned[key] if key is not None else next(iter(returned.values()))
    tensor: Tensor = returned[0] if isinstance(returned, (tuple, list)) else returned
    return tensor


class _Traced(fx.Interpreter):
    """Runs a graph, and knows which node it is at.

    Args:
        graph: The graph.
        keep: Whether to keep what every node returns.
    """

    def __init__(self, graph: fx.GraphModule, *, keep: bool = False) -> None:
        super().__init__(graph)
        self.label = ""
        self.steps: dict[fx.Node, Tensor] | None = {} if keep else None

    def label_of(self, node: fx.Node) -> str:
        """What a node computes, and in which module.

        Args:
            node: Any node.
        """
        if node.op == "call_module":
            kind = type(self.module.get_submodule(str(node.target))).__name__
            return f"`{node.target}` ({kind})"
        operation, module = operation_name(node), node.meta.get("module", "")
        return f"`{operation}` in `{module}`" if module else f"`{operation}`"

    def run_node(self, n: fx.Node) -> Any:
        self.label = self.label_of(n)
        value = super().run_node(n)
        if self.steps is not None and isinstance(value, Tensor):
            self.steps[n] = value
        return value


class _Randomness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Listens for operations that draw random numbers."""

    def __init__(self, traced: _Traced) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._traced = traced
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            arguments = func._schema.arguments
            given = {argument.name: argument.default_value for argument in arguments}
            given |= dict(zip(given, args, strict=False)) | (kwargs or {})
            # tagged too are fused attention that drops nothing, and activations in eval mode
            if given.get("dropout_p") != 0 and given.get("training") is not False:
                self.found.append(self._traced.label)
        return func(*args, **(kwargs or {}))


def _nodes(graph: fx.GraphModule, images: Tensor) -> dict[str, Tensor]:
    """What nodes return, by what they are and, where they are a module's output, by its path."""
    traced = _Traced(graph, keep=True)
    traced.run(images)
    assert traced.steps is not None
    found: dict[str, Tensor] = {}
    for node, value in traced.steps.items():
        found[f"{traced.label_of(node)}\n{node.name}"] = value
        found |= {f"`{path}`": value for path in node.meta.get("output_of", [])}
    return found


def _parts(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What the modules of a network return, by their paths, in the order in which they end."""
    found: dict[str, Tensor] = {}

    def keep(path: str, returned: Any) -> None:
        if isinstance(returned, Tensor):
            found.setdefault(f"`{path}`", returned)

    handles = [
        part.register_forward_hook(lambda _, __, returned, path=path: keep(path, returned))
        for path, part in module.named_modules()
        if path
    ]
    try:
        module(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _difference(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """The first value that is another one, as far as both have images in common."""
    for label, one in some.items():
        other = others.get(label)
        if other is None:
            continue
        rows = min(one.shape[0], other.shape[0]) if one.dim() and other.dim() else None
        close = tolerance(other if other.dim() else other[None])
        if not close(one[:rows] if rows else one, other[:rows] if rows else other):
            return label.partition("\n")[0]
    return "its own `forward`"


def _advice(label: str, module: nn.Module) -> str:
    if isinstance(module, ProgramModule) and ("dropout" in label or "norm" in label):
        return "Export it in eval mode: call `eval()` before `torch.export.export`."
    known = [advice for word, advice in _ADVICE.items() if word in label.lower()]
    return known[0] if known else "An answer must depend on its image alone."
