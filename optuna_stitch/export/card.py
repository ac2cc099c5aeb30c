"""What lies beside an exported network: its model card, and how timm prepares its images.

Nothing here measures or looks anything up: figures, comparisons and licences are given.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from optuna_stitch.data.view import View
from optuna_stitch.evaluation.metrics import RETAINED, unit_of
from optuna_stitch.export.cascade_text import cascade_sentence, cascade_table
from optuna_stitch.export.formats import FORMATS
from optuna_stitch.export.proof import Proof, proof_cells, proof_note, unproven_note
from optuna_stitch.stitching.genotype import BOTH, SIDES, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.text import (
    listed_text,
    markdown_table,
    millions_text,
    number_text,
    p_value_text,
    percent_interval_text,
    percent_text,
    points_text,
)

DRAWING = "network.svg"

_NOT_STATED = "not stated"

# Licences that the Hugging Face Hub knows by these names; others it wants as `other`, with a name.
_HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0"),
    *("apple-ascl", "apple-amlr", "gemma", "unknown"),
)

_TESTS = {"accuracy": "McNemar's test", "mean_iou": "the paired bootstrap"}

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


_ANSWER_BOTH = """\
labels = {side: logits.argmax(dim=1) for side, logits in answers.items()}  # numbers of classes"""

_ANSWER_BOTH_NAMED = """\
for side, logits in answers.items():
    print(side, config["outputs"][side]["label_names"][int(logits.argmax(dim=1))])"""


@dataclass(frozen=True)
class Figures:
    """Figures of one network on the test split.

    Args:
        name: What the network is called.
        quality: Its accuracy or mean IoU, as a share of 1.
        interval: Lower and upper bound of the quality's 95% interval, as shares of 1.
        macs: Multiply-accumulates per image; of a cascade, on average.
        parameters: Number of parameters.
        others: Further figures, by name.
        worst_macs: Multiply-accumulates of the most expensive image, where images differ.
        share: Of a cascade, the share of the images that go on.
    """

    name: str
    quality: float
    interval: tuple[float, float]
    macs: float
    parameters: int
    others: Mapping[str, float] = field(default_factory=dict)
    worst_macs: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A network and a baseline on the same test images.

    Args:
        difference: Quality of the network less that of the baseline, as a share of 1.
        p_value: Corrected by Holm for all comparisons of the network.
    """

    difference: float
    p_value: float


@dataclass(frozen=True)
class Results:
    """How good a network is on the test split, and what it is compared with.

    Args:
        network: Its own figures.
        baselines: Figures of the parents, of their ensemble, and of what else one would use.
        comparisons: By the baselines' names; a baseline may have none.
        images: Number of test images.
        dataset: What the data set is called.
        metric: What the quality is: ``accuracy``, or ``mean_iou`` for segmentation.
    """

    network: Figures
    baselines: Sequence[Figures]
    comparisons: Mapping[str, Comparison]
    images: int
    dataset: str
    metric: str = "accuracy"


@dataclass(frozen=True)
class ParentOrigin:
    """A parent, and whose weights it has.

    Args:
        name: What the network is called.
        weights: Where its weights come from; None where nothing is known.
        licence: What their source states; None where it states nothing.
        repo: Their repository on the Hugging Face Hub, ``user/name``, where they have one.
    """

    name: str
    weights: str | None = None
    licence: str | None = None
    repo: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where a network comes from: all that its card says and the network itself does not know.

    Args:
        parents: All parents, by side.
        trial: Number of its trial, where it is one.
        study: Name of the study.
        results: Its figures on the test split.
        data: The images, as (what, which).
        command: What made the export, in a shell.
        facts: What else its figures depend on, as (what, which).
        class_names: In the order of their labels, where they are known.
        names_of: The same of two questions, by side.

    Example:
        >>> origin = Origin(
        ...     {"a": ParentOrigin("resnet18", licence="mit"), "b": ParentOrigin("vit_tiny")},
        ...     class_names=["cat", "dog"],
        ... )
        >>> origin.title
        'resnet18 × vit_tiny'
    """

    parents: Mapping[Side, ParentOrigin]
    trial: int | None = None
    study: str | None = None
    results: Results | None = None
    data: Sequence[tuple[str, str]] = ()
    command: str | None = None
    facts: Sequence[tuple[str, str]] = ()
    class_names: Sequence[str] | None = field(default=None, repr=False)
    names_of: Mapping[Side, Sequence[str] | None] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """The headline of the card."""
        if self.trial is None:
            return " × ".join(self.parents[side].name for side in sorted(self.parents))
        return f"Trial {self.trial} of {self.study}"


def describe(subnetwork: Subnetwork, origin: Origin) -> str:
    """Say what a network is stitched from.

    Args:
        subnetwork: The network.
        origin: Where it comes from.

    Returns:
        One sentence, without a full stop.
    """
    names = {side: one.name for side, one in origin.parents.items()}
    whose = f"A subnetwork of {origin.title}"
    if origin.trial is not None:
        whose = f"Trial {origin.trial} of the study {origin.study}"
    if subnetwork.finished is not None:
        whose += ", finished"
    macs = _macs(subnetwork)
    used = _parents_in(subnetwork)
    if len(used) == 1:
        return f"{whose}: {names[used[0]]} (parent {used[0]}) alone, without a stitch"
    of_macs = "of the worst-case MACs" if subnetwork.is_cascade else "of the MACs"
    whole = "cascade" if subnetwork.is_cascade else "ensemble"
    whole = "pair" if subnetwork.output == BOTH else whole
    share = {owner: percent_text(macs[owner] / sum(macs.values()), 0) for owner in macs}
    both = listed_text([f"{names[side]} ({side}, {share[side]} {of_macs})" for side in used])
    count = len(subnetwork.on)
    if not count:
        return f"{whose}: the {whole} of {both}, without a stitch"
    linear = "one linear stitch" if count == 1 else f"{count} linear stitches"
    return f"{whose}: stitched from {both} by {linear} ({share['stitch']})"


def _macs(subnetwork: Subnetwork) -> Counter[str]:
    """Multiply-accumulates per image by owner: parents, ``stitch`` and others of none."""
    operations = subnetwork.supergraph.operations
    macs: Counter[str] = Counter()
    for place, _ in subnetwork.resolved.steps:
        macs[operations[place].owner] += operations[place].macs
    return macs


def _parents_in(subnetwork: Subnetwork) -> list[Side]:
    """The parents that a network has layers of."""
    return [side for side in subnetwork.supergraph.sides if side in _macs(subnetwork)]


def licence_of(subnetwork: Subnetwork, origin: Origin) -> str | None:
    """Find the licence that a network may be given.

    Args:
        subnetwork: The network.
        origin: Where it comes from.

    Returns:
        The licence that all parents in it state alike; None, where they do not.
    """
    stated = {origin.parents[side].licence for side in _parents_in(subnetwork)}
    return stated.pop() if len(stated) == 1 else None


def timm_config(
    architecture: str,
    classes: int,
    views: Mapping[str, View],
    *,
    class_names: Sequence[str] | None,
    licence: str | None,
    cascade: Mapping[str, Any] | None = None,
    answers: Mapping[Side, Mapping[str, Any]] | None = None,
    files: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of ``config.json``.

    Args:
        architecture: What to call the network.
        classes: Number of classes.
        views: How each input sees images, by its name.
        class_names: In the order of their labels, where they are known.
        licence: Where there is one.
        cascade: When a cascade's first answer is enough, and what it costs.
        answers: Of a network that answers two questions, the classes of each.
        files: What each file was found to do; see `proof_config`.

    Returns:
        JSON with ``pretrained_cfg``, or with one for each of ``inputs`` where there are several;
        ``timm.data.resolve_data_config(pretrained_cfg=...)`` reads it.
    """
    counted: dict[str, Any] = {"outputs": dict(answers)} if answers else {"num_classes": classes}
    shared: dict[str, Any] = {} if answers else {"num_classes": classes}
    if class_names is not None:
        shared["label_names"] = list(class_names)
    if licence is not None:
        shared["license"] = licence
    described = {name: {**asdict(view), **shared} for name, view in views.items()}
    config: dict[str, Any] = {
        "architecture": re.sub(r"[^\w.-]+", "_", architecture),
        **counted,
    }
    if len(described) == 1:
        config["pretrained_cfg"] = next(iter(described.values()))
    else:
        config["inputs"] = [
            {"name": name, "pretrained_cfg": fields} for name, fields in described.items()
        ]
    if cascade is not None:
        config["cascade"] = dict(cascade)
    if files:
        config["files"] = list(files)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def answers_of(subnetwork: Subnetwork, origin: Origin) -> dict[Side, dict[str, Any]] | None:
    """The classes of each answer, of a network that answers two questions; else None.

    Args:
        subnetwork: The network.
        origin: With the names of the classes, where they are known.
    """
    if subnetwork.output != BOTH:
        return None
    found: dict[Side, dict[str, Any]] = {}
    for side in SIDES:
        names = origin.names_of.get(side)
        found[side] = {"num_classes": subnetwork.supergraph.classes_of(side)}
        if names is not None:
            found[side]["label_names"] = list(names)
    return found


def write_card(
    subnetwork: Subnetwork,
    origin: Origin,
    views: Mapping[str, View],
    formats: Sequence[str],
    proofs: Sequence[Proof] = (),
) -> str:
    """Write the model card, with the header that the Hugging Face Hub reads.

    Args:
        subnetwork: The network.
        origin: Where it comes from.
        views: How each input sees images, by its name.
        formats: What it was exported as.
        proofs: What each file was found to do.

    Returns:
        The text of ``README.md``.
    """
    parents = [
        [side, one.name, one.weights or _NOT_STATED, one.licence or _NOT_STATED]
        for side, one in origin.parents.items()
    ]
    stitches = zip(sorted(subnetwork.on), subnetwork.stitches, strict=True)
    whose = "Both" if len(origin.parents) == 2 else "All"
    paragraphs = [
        f"---\n{_header(subnetwork, origin, formats)}\n---",
        f"# {origin.title}",
        f"{describe(subnetwork, origin)}. {_returns(subnetwork)}",
        f"![{whose} parents from input to output, and the path of this network]({DRAWING})",
        *(_figures(origin.results) if origin.results is not None else ()),
        *_cascade(subnetwork, origin.results),
        *_how_finished(subnetwork),
        *_files(proofs, formats),
        "## Parents",
        markdown_table(["parent", "network", "weights", "licence"], parents),
        "Licences are those that the sources of the weights state; nothing else was looked up.",
        "## Stitches",
        "\n".join(f"- {name} (switch {number})" for number, name in stitches) or "None is on.",
        "## Use",
        *_usage(subnetwork, origin, views, formats),
    ]
    if origin.data:
        paragraphs += ["## Data", markdown_table(["", ""], origin.data)]
    if origin.command is not None or origin.facts:
        paragraphs.append("## Made by")
    if origin.command is not None:
        paragraphs.append(f"```sh\n{origin.command}\n```")
    if origin.facts:
        paragraphs.append(markdown_table(["", ""], origin.facts))
    return "\n\n".join(paragraphs) + "\n"


def _returns(subnetwork: Subnetwork) -> str:
    """What it returns, in a sentence or two."""
    if subnetwork.is_cascade:
        return cascade_sentence(subnetwork)
    if subnetwork.output == BOTH:
        graph = subnetwork.supergraph
        what = {
            side: f"`{side}`, {graph.classes_of(side)} classes"
            f"{' of every pixel' if graph.segments_of(side) else ''}"
            for side in SIDES
        }
        told = " and ".join(what.values())
        return f"It answers two questions, each by one parent's head: {told}."
    if len(subnetwork.sides) == 1:
        return f"It returns the output of {subnetwork.output}."
    several = len(subnetwork.supergraph.sides) > 2
    whose = listed_text(subnetwork.sides) if several else "both"
    return f"It returns the mean of the class probabilities of {whose}, as logits."


def _how_finished(subnetwork: Subnetwork) -> list[str]:
    """How it was trained to its end; nothing of other networks."""
    done = subnetwork.finished
    if done is None:
        return []
    settings = ", ".join(f"{name} {value}" for name, value in done.settings.items())
    return ["## Finished", done.text, f"Settings: {settings}."]


def _cascade(subnetwork: Subnetwork, results: Results | None) -> list[str]:
    """When the first answer is enough, and what images cost; nothing of other networks."""
    if not subnetwork.is_cascade:
        return []
    share = results.network.share if results is not None else None
    return ["## Cascade", cascade_table(subnetwork, share)]


def _files(proofs: Sequence[Proof], formats: Sequence[str]) -> list[str]:
    """What each file was found to do in its own runtime, in paragraphs."""
    left = unproven_note(formats)
    found = [left] if left else []
    if proofs:
        head, rows = proof_cells(proofs)
        found = [markdown_table(head, rows, align="llr"), proof_note(proofs), *found]
    return ["## Files", *found] if found else []


def _header(subnetwork: Subnetwork, origin: Origin, formats: Sequence[str]) -> str:
    """The metadata of the card, as YAML."""
    graph = subnetwork.supergraph
    dense = graph.segments
    if subnetwork.output == BOTH:
        dense = all(graph.segments_of(side) for side in SIDES)
    task = "image-segmentation" if dense else "image-classification"
    stated = licence_of(subnetwork, origin)
    known = stated in _HUB_LICENCES
    repos = [origin.parents[side].repo for side in _parents_in(subnetwork)]
    tags = list(dict.fromkeys(tag for name in formats for tag in FORMATS[name].tags))
    results = origin.results
    header = ModelCardData(
        base_model=[repo for repo in repos if repo is not None] or None,
        eval_results=_eval_results(results, task) if results is not None else None,
        library_name="pytorch",
        license=stated if known else "other",
        license_name=None if known else stated,
        metrics=[results.metric] if results is not None else None,
        model_name=origin.title if results is not None else None,
        pipeline_tag=task,
        tags=[task, "optuna-stitch", "model-stitching", *tags],
    )
    return header.to_yaml()


def _eval_results(results: Results, task: str) -> list[EvalResult]:
    """The network's own figures, as the hub lists them."""
    network = results.network
    return [
        EvalResult(
            task_type=task,
            dataset_type=results.dataset,
            dataset_name=results.dataset,
            dataset_split="test",
            metric_type=name,
            metric_name=unit_of(name).words,
            metric_value=value,
        )
        for name, value in {results.metric: network.quality, **network.others}.items()
    ]


def _figures(results: Results) -> list[str]:
    """Test figures of the network and of what it is compared with, in paragraphs."""
    if results.metric == RETAINED.name:
        return _figures_of_both(results)
    words, network = unit_of(results.metric).words, results.network
    head = ["network", words, "95% interval", "MACs", *network.others, "parameters"]
    rows = []
    for one in (*results.baselines, network):
        comparison = results.comparisons.get(one.name)
        rows.append(
            [
                f"**{one.name}**" if one is network else one.name,
                percent_text(one.quality),
                percent_interval_text(one.interval, sign="%"),
                _macs_text(one),
                *(number_text(one.others[name]) for name in network.others),
                f"{one.parameters:,}",
                points_text(comparison.difference) if comparison is not None else "",
                p_value_text(comparison.p_value) if comparison is not None else "",
            ]
        )
    return [
        "## Figures",
        f"On {results.images} test images, which neither the fit of the stitches nor the search "
        "has seen:",
        markdown_table([*head, "difference", "p"], rows, align="lr"),
        f"*difference*: {words} of this network less that of the row, in points; *p* by "
        f"{_TESTS[results.metric]} on the same images, corrected by Holm for these comparisons.",
    ]


def _figures_of_both(results: Results) -> list[str]:
    """The same of a network that answers two questions."""
    network = results.network
    units = {name: unit_of(name) for name in network.others}
    head = ["network", "kept", "95% interval", "MACs", *(unit.title for unit in units.values())]
    rows = [
        [
            f"**{one.name}**" if one is network else one.name,
            percent_text(one.quality),
            percent_interval_text(one.interval, sign="%"),
            _macs_text(one),
            *(unit.text(one.others[name]) for name, unit in units.items()),
            f"{one.parameters:,}",
        ]
        for one in (*results.baselines, network)
    ]
    compared = [
        [name, points_text(comparison.difference), p_value_text(comparison.p_value)]
        for name, comparison in results.comparisons.items()
    ]
    return [
        "## Figures",
        f"On {results.images} test images, which neither the fit of the stitches nor the search "
        "has seen:",
        markdown_table([*head, "parameters"], rows, align="lr"),
        "*kept*: the smaller of two shares, of what each parent reaches alone at its question. "
        "A *probe* has one parent whole, and the other's answers by ridge regression from one of "
        "its features.",
        markdown_table(["against", "difference", "p"], compared, align="lr"),
        "*difference*: this network less that parent at its question, in points; *p* by McNemar's "
        "test (of pixels, the paired bootstrap) on the same images, corrected by Holm for these "
        "comparisons.",
    ]


def _macs_text(one: Figures) -> str:
    text = millions_text(one.macs, 3)
    if one.worst_macs is None or one.worst_macs == one.macs:
        return text
    return f"{text}, at most {millions_text(one.worst_macs, 3)}"


# For networks whose inputs differ in it.
_MODE_OF_EACH = '{1: "L", 4: "RGBA"}.get(cfg["input_size"][0], "RGB")'


def _usage(
    subnetwork: Subnetwork, origin: Origin, views: Mapping[str, View], formats: Sequence[str]
) -> list[str]:
    """How to prepare an image, load each format, and read the answer, in paragraphs."""
    segments, named = subnetwork.supergraph.segments, origin.class_names is not None
    modes = {view.mode for view in views.values()}
    mode = f'"{modes.pop()}"' if len(modes) == 1 else _MODE_OF_EACH
    several, is_both = len(views) > 1, subnetwork.output == BOTH
    cfgs = '[one["pretrained_cfg"] for one in config["inputs"]]'
    names = '["inputs"][0]["pretrained_cfg"]' if several else '["pretrained_cfg"]'
    what = "class of every pixel" if segments else "class"
    answer = f"labels = logits.argmax(dim=1)  # {what}: a number"
    if named and not segments:
        answer = f'print(config{names}["label_names"][int(logits.argmax(dim=1))])'
    elif named:
        answer += f', the place of its name in config{names}["label_names"]'
    if is_both:
        answer = _ANSWER_BOTH
        if all(origin.names_of.get(side) for side in SIDES) and not any(
            subnetwork.supergraph.segments_of(side) for side in SIDES
        ):
            answer = _ANSWER_BOTH_NAMED
    prepare = _PREPARE.format(cfgs=cfgs if several else '[config["pretrained_cfg"]]', mode=mode)
    paragraphs = [
        "An image becomes the network's input by timm's transform. In this folder:",
        f"```python\n{prepare}\n```",
    ]
    for name in formats:
        form = FORMATS[name]
        usage = form.usage_both if is_both else form.usage
        paragraphs += [f"{form.needs}:", f"```python\n{usage}\n{answer}\n```"]
        if subnetwork.is_cascade:
            paragraphs.append(f"{form.cascades}.")
    batches = "`images` may hold any number of images, along its first dimension"
    singles = [FORMATS[name].single for name in formats if FORMATS[name].single]
    alone = [FORMATS[name].files[0] for name in formats if FORMATS[name].one_image]
    alone = [*(singles if subnetwork.is_cascade else ()), *alone]
    if alone:
        batches += f", save for {listed_text([f'`{file}`' for file in alone])}"
    return [*paragraphs, f"{batches}."]
