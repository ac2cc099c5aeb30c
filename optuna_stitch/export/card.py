"""The model card of an exported network: what it is, how good, whose weights, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from optuna_stitch.data.view import View
from optuna_stitch.diagram.segments import Dissection
from optuna_stitch.evaluation.metrics import words_of
from optuna_stitch.report.front import Entry, Front, PairedComparison
from optuna_stitch.stitching.genotype import Output, Side
from optuna_stitch.stitching.supergraph import SIDES

_LOAD = {
    "python": (
        "`network.py` and `network.safetensors`, which need torch and safetensors:",
        """\
from network import load_network

network = load_network()
with torch.no_grad():
    logits = network(*images)""",
    ),
    "program": (
        "`network.pt2`, which needs torch:",
        """\
network = torch.export.load("network.pt2").module()
with torch.no_grad():
    logits = network(*images)""",
    ),
    "onnx": (
        "`network.onnx`, which needs onnxruntime:",
        """\
import onnxruntime

session = onnxruntime.InferenceSession("network.onnx")
names = [argument.name for argument in session.get_inputs()]
given = {name: pixels.numpy() for name, pixels in zip(names, images)}
logits = torch.from_numpy(session.run(None, given)[0])""",
    ),
}

_PREPARE = """\
import json

import timm.data
import torch
from PIL import Image

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
image = Image.open("image.png")
images = []
for cfg in {cfgs}:
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
    images.append(transform(image.convert({mode}))[None])"""


def snippets(
    views: Mapping[str, View], formats: Sequence[str], *, segments: bool, named: bool
) -> list[str]:
    """Lines of Markdown: how to prepare an image, to load each format, and to read the answer.

    Args:
        views: How each input sees images, by its name.
        formats: What the network was exported as.
        segments: Whether it labels every pixel.
        named: Whether the classes have names.
    """
    modes = {view.mode for view in views.values()}
    mode = f'"{modes.pop()}"' if len(modes) == 1 else '"L" if cfg["input_size"][0] == 1 else "RGB"'
    several = len(views) > 1
    cfgs = '[one["pretrained_cfg"] for one in config["inputs"]]'
    names = '["inputs"][0]["pretrained_cfg"]' if several else '["pretrained_cfg"]'
    what = "class of every pixel" if segments else "class"
    answer = "labels = logits.argmax(dim=1)  # " + f"{what}: a number"
    if named and not segments:
        answer = f'print(config{names}["label_names"][int(logits.argmax(dim=1))])'
    elif named:
        answer += f', the place of its name in config{names}["label_names"]'
    return [
        "An image becomes the network's input by timm's transform. In this folder:",
        "",
        *_code(_PREPARE.format(cfgs=cfgs if several else '[config["pretrained_cfg"]]', mode=mode)),
        *(
            line
            for name in formats
            for line in (_LOAD[name][0], "", *_code(f"{_LOAD[name][1]}\n{answer}"))
        ),
        "`images` may hold any number of images, along its first dimension.",
        "",
    ]


def _code(text: str) -> list[str]:
    return ["```python", *text.splitlines(), "```", ""]


def timm_config(
    architecture: str,
    classes: int,
    views: Mapping[str, View],
    *,
    class_names: Sequence[str] | None,
    licence: str | None,
) -> str:
    """The text of ``config.json``.

    Args:
        architecture: What to call the network.
        classes: Number of classes.
        views: How each input sees images, by its name.
        class_names: In the order of their labels, where they are known.
        licence: Where there is one.

    Returns:
        JSON with ``pretrained_cfg``, or with one for each of ``inputs`` where there are several;
        ``timm.data.resolve_data_config(pretrained_cfg=...)`` reads it.
    """
    shared: dict[str, Any] = {"num_classes": classes}
    if class_names is not None:
        shared["label_names"] = list(class_names)
    if licence is not None:
        shared["license"] = licence
    described = {name: {**asdict(view), **shared} for name, view in views.items()}
    config: dict[str, Any] = {
        "architecture": re.sub(r"[^\w.-]+", "_", architecture),
        "num_classes": classes,
    }
    if len(described) == 1:
        config["pretrained_cfg"] = next(iter(described.values()))
    else:
        config["inputs"] = [
            {"name": name, "pretrained_cfg": fields} for name, fields in described.items()
        ]
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


DRAWING = "network.svg"

NOT_STATED = "not stated"

# Licences that the Hugging Face Hub knows by these names; others it wants as `other`, with a name.
_KNOWN = (
    *("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0"),
    *("apple-ascl", "apple-amlr", "gemma", "unknown"),
)

_RETURNS: dict[Output, str] = {
    "a": "It returns the output of a.",
    "b": "It returns the output of b.",
    "ensemble": "It returns the mean of the class probabilities of both, as logits.",
}

_TESTS = {"accuracy": "McNemar's test", "mean_iou": "the paired bootstrap"}


@dataclass(frozen=True)
class Ancestor:
    """A parent, and whose weights it has.

    Args:
        name: What the network is called.
        weights: Where they come from.
        licence: What their source states; None where it states nothing.
    """

    name: str
    weights: str
    licence: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where a network comes from.

    Args:
        trial: Number of the trial.
        study: Name of the study.
        front: The trial and its baselines on the test split.
        ancestors: The parents.
        data: The images, as (what, which).
        command: What made this export, in a shell.
        facts: What else its figures depend on, as (what, which).
        class_names: In the order of their labels, where they are known.
    """

    trial: int
    study: str
    front: Front
    ancestors: Mapping[Side, Ancestor]
    data: Sequence[tuple[str, str]]
    command: str
    facts: Sequence[tuple[str, str]] = ()
    class_names: Sequence[str] | None = field(default=None, repr=False)

    @property
    def entry(self) -> Entry:
        """The trial's figures."""
        return self.front.entry(self.trial)


def what_it_is(origin: Origin, parts: Dissection) -> str:
    """One sentence, without a full stop: whose trial, stitched from what."""
    trial = f"Trial {origin.trial} of the study {origin.study}"
    names = {side: origin.ancestors[side].name for side in SIDES}
    used = parents_in(parts)
    if len(used) == 1:
        return f"{trial}: {names[used[0]]} (parent {used[0]}) alone, without a stitch"
    total = sum(parts.macs.values())
    share = {owner: f"{100 * macs / total:.0f}%" for owner, macs in parts.macs.items()}
    both = " and ".join(f"{names[side]} ({side}, {share[side]} of the MACs)" for side in SIDES)
    stitches = len(parts.genotype.on)
    if not stitches:
        return f"{trial}: the ensemble of {both}, without a stitch"
    linear = "one linear stitch" if stitches == 1 else f"{stitches} linear stitches"
    return f"{trial}: stitched from {both} by {linear} ({share['stitch']})"


def parents_in(parts: Dissection) -> list[Side]:
    """The parents that a network has layers of."""
    return [side for side in SIDES if any(segment.entered for segment in parts.segments[side])]


def licence_of(origin: Origin, parts: Dissection) -> str | None:
    """The licence that all parents in it state alike; None, where they do not."""
    stated = {origin.ancestors[side].licence for side in parents_in(parts)}
    return stated.pop() if len(stated) == 1 else None


def write_card(
    origin: Origin,
    parts: Dissection,
    views: Mapping[str, View],
    formats: Sequence[str],
    *,
    segments: bool,
) -> str:
    """The text of ``README.md``, with the header that the Hugging Face Hub reads.

    Args:
        origin: Where the network comes from.
        parts: What it consists of.
        views: How each input sees images, by its name.
        formats: What it was exported as.
        segments: Whether it labels every pixel.
    """
    task = "image-segmentation" if segments else "image-classification"
    on = [crossing for crossing in parts.crossings if crossing.used]
    lines = [
        "---",
        *_licence(licence_of(origin, parts)),
        "library_name: pytorch",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in (task, "optuna-stitch", "model-stitching", *_tags(formats))),
        "---",
        "",
        f"# Trial {origin.trial} of {origin.study}",
        "",
        f"{what_it_is(origin, parts)}. {_RETURNS[parts.genotype.output]}",
        "",
        f"![Both parents from input to output, and the path of this network]({DRAWING})",
        "",
        *_figures(origin),
        "## Parents",
        "",
        "| parent | network | weights | licence |",
        "|---|---|---|---|",
        *(
            f"| {side} | {one.name} | {one.weights} | {one.licence or NOT_STATED} |"
            for side, one in origin.ancestors.items()
        ),
        "",
        "Licences are those that the sources of the weights state; nothing else was looked up.",
        "",
        "## Stitches",
        "",
        *(f"- {crossing.switch.name} (switch {crossing.number})" for crossing in on),
        *(() if on else ("None is on.",)),
        "",
        "## Use",
        "",
        *snippets(views, formats, segments=segments, named=origin.class_names is not None),
        "## Data",
        "",
        *_table(origin.data),
        "",
        "## Made by",
        "",
        "```sh",
        origin.command,
        "```",
        "",
        *_table(origin.facts),
        "",
    ]
    return "\n".join(lines)


def _licence(stated: str | None) -> list[str]:
    if stated is None:
        return ["license: other"]
    return (
        [f"license: {stated}"]
        if stated in _KNOWN
        else ["license: other", f"license_name: {stated}"]
    )


def _tags(formats: Sequence[str]) -> list[str]:
    return [tag for tag, of in (("safetensors", "python"), ("onnx", "onnx")) if of in formats]


def _figures(origin: Origin) -> list[str]:
    """Test figures of the network and of what it is compared with."""
    front, entry = origin.front, origin.entry
    comparisons = {claim.baseline: claim for claim in entry.comparisons}
    rivals = [
        other
        for other in front.baselines
        if other is not entry
        and (other.name in comparisons or other.kind in ("parent", "ensemble"))
    ]
    words = words_of(front.metric)
    figures = [name for name in entry.test if name not in (front.metric, "macs", "parameters")]
    head = ["network", words, "95% interval", "MACs", *figures, "parameters", "difference", "p"]
    rows = [_row(other, figures, comparisons.get(other.name)) for other in (*rivals, entry)]
    rows[-1][0] = f"**{entry.name}**"
    return [
        "## Figures",
        "",
        f"On {front.images} test images, which neither the fit of the stitches nor the search has "
        "seen:",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"*difference*: {words} of this network less that of the row, in points; *p* by "
        f"{_TESTS[front.metric]} on the same images, corrected by Holm for these comparisons.",
        "",
    ]


def _row(entry: Entry, figures: Sequence[str], claim: PairedComparison | None) -> list[str]:
    low, high = entry.interval
    return [
        entry.name,
        f"{100 * entry.quality:.2f}%",
        f"{100 * low:.1f}–{100 * high:.1f}%",
        f"{entry.test['macs'] / 1e6:,.3f} M",
        *(f"{entry.test[name]:.4g}" for name in figures),
        f"{entry.parameters:,}",
        f"{100 * claim.difference:+.2f}" if claim else "",
        f"{claim.p_value:.2g}" if claim else "",
    ]


def _table(facts: Sequence[tuple[str, str]]) -> list[str]:
    rows = [f"| {what} | {which.replace('|', '/')} |" for what, which in facts]
    return ["| | |", "|---|---|", *rows]
