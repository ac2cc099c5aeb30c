"""Write a traced subnetwork as one Python file that needs torch and safetensors only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from torch import Tensor

from optuna_stitch.results.export.inlining import inlined
from optuna_stitch.results.export.lines import Lines, needed
from optuna_stitch.results.export.tracing import Traced
from optuna_stitch.results.export.weights import accessor, buffer_names, weights_of
from optuna_stitch.stitching.genotype import Switch

CODE = "network.py"
WEIGHTS = "network.safetensors"

_FILE = '''\
"""{title}.

This file needs torch and safetensors. Beside it:

    from network import load_network

    network = load_network()
    logits = network({inputs})  # {shapes}

`config.json` says how images are resized and normalized. `forward` has one line an operator;
comments name the part of parent a or b that the lines come from, and the stitches between them.
Values x belong to a, values y to b.

To fine-tune, train `network.parameters()`. The network computes the same in train and in eval
mode: BatchNorm statistics are buffers that stay as they are, and there is no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

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
        for name, weight in weights.items():
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

    def forward(self, {arguments}) -> Tensor:
        """Return {answer} for {shapes}."""
{body}


def load_network(folder: str | Path = Path(__file__).parent) -> Network:
    """Make the network with the weights in `network.safetensors`."""
    return Network(load_file(Path(folder) / "network.safetensors")).eval()
'''


def write_code(
    traced: Traced, switches: Sequence[Switch], *, title: str, answer: str
) -> tuple[str, dict[str, Tensor]]:
    """Write the source and collect the weights that it uses.

    Args:
        traced: The subnetwork.
        switches: The supernetwork's.
        title: What the network is, in one line.
        answer: What it returns, with its shape.

    Returns:
        The text of ``network.py``, and the tensors of ``network.safetensors`` by name.

    Raises:
        ExportError: If it uses an operator that is not torch's own.
    """
    nodes = needed(inlined(traced.program.graph_module))
    weights = weights_of(traced.program, nodes)
    names = {node: accessor(weight.name) for node, weight in weights.items()}
    lines = list(Lines(traced, names, switches).write(nodes))
    tensors = {weight.name: weight.tensor for weight in weights.values()}
    roots = sorted({name.partition(".")[0] for name in tensors})
    if roots:
        lines.insert(0, f"{', '.join(roots)} = {', '.join(f'self.{root}' for root in roots)}")
    shapes = [
        f"{name} ({', '.join(['N', *map(str, view.input_size)])})"
        for name, view in traced.views.items()
    ]
    buffers = ", ".join(f'"{name}"' for name in buffer_names(weights.values()))
    text = _FILE.format(
        title=" ".join(title.split()).replace("\\", "/").replace('"', "'"),
        inputs=", ".join(traced.views),
        arguments=", ".join(f"{name}: Tensor" for name in traced.views),
        shapes=", ".join(shapes),
        buffers=f"{{{buffers}}}" if buffers else "set()",
        answer=answer,
        body=textwrap.indent("\n".join(lines), " " * 8),
    )
    return text, tensors
