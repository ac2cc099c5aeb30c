"""A first study file for two networks, with a comment at every key that users change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import timm
import torchvision
import yaml

from optuna_stitch.data.classes import ImageTree
from optuna_stitch.models.zoo import (
    TORCHVISION,
    check_network,
    source_of,
    timm_config,
    zoo_outputs,
)
from optuna_stitch.utils.errors import MatchError

# What most networks of both zoos were trained on.
_IMAGENET = 1000

# Stands for the number of the user's own classes, where nothing tells it.
_SOME = 10

# Comments stand below each other, except where the line is longer.
_WIDTH = 46

# Lines of YAML, each with what is said about it.
_Rows = list[tuple[str, str]]


def study_file_for(a: str, b: str, *, data: Path | None = None, folder: Path | None = None) -> str:
    """Write a commented study file for two networks, without making them or fetching weights.

    Comments that begin with a key, ``# key: value``, are further settings; ``# or key: value``
    replaces the setting above it.

    Args:
        a: Name of parent a, as `load_parent` takes it.
        b: Name of parent b.
        data: A folder of one's own images with a folder for each class (for networks that label
            pixels, what holds ``VOCdevkit``); if None, what the weights were trained on, or a
            place for one's own.
        folder: Where the study file will lie, to which paths in it are relative; the current
            folder, if None.

    Returns:
        The text.

    Raises:
        UnknownNetworkError: If there is no network of such a name.
        CheckpointError: If there is no file of an exported program.
        MatchError: If one network labels pixels and the other whole images.
        DataError: If the images cannot be read, or are too few.
    """
    for network in (a, b):
        check_network(network)
    pixels = _labels_pixels(a)
    if pixels != _labels_pixels(b):
        one, other = (a, b) if pixels else (b, a)
        raise MatchError(
            f"{one} labels pixels and {other} whole images: they have two jobs, for which `init` "
            "has no study file. Begin with studies/two_jobs_folder.yaml, with data for each."
        )
    folder = folder or Path()
    images = _Images.found(data, folder) if data is not None and not pixels else None
    outputs = {network: zoo_outputs(network) for network in (a, b)}
    pair = _Pair(outputs, images.classes if images else _agreed(outputs), images is not None)
    if pixels:
        rows = _voc(data, folder)
    elif images is None and pair.classes == _IMAGENET:
        rows = _imagenet()
    else:
        rows = _folder(images, pair.classes)
    return "\n".join(
        [
            f"# {a} × {b}",
            "#",
            "# A line `# key: ...` is one setting more, without its mark; `# or key: ...` is one",
            "# in place of that above it. Paths are relative to this file. Other keys have",
            "# defaults, which study.yaml in the folder of a run shows.",
            "",
            "parents:",
            *_aligned([*_parent("a", a, pair, folder), *_parent("b", b, pair, folder)]),
            "",
            *_aligned(rows),
            "",
            *_aligned(_stages()),
            "",
            *_aligned(_study("mean_iou" if pixels else "accuracy")),
            "",
        ]
    )


@dataclass(frozen=True)
class _Pair:
    """What is known of two networks."""

    outputs: dict[str, int | None]
    """What the pretrained weights of each give; see `zoo_outputs`."""
    classes: int | None
    """How many classes both shall tell apart; None, if only the user knows."""
    own: bool
    """Whether that is by the user's images."""


@dataclass(frozen=True)
class _Images:
    """A folder of images."""

    root: str
    count: int
    classes: int
    ordered: bool
    """Whether the folders alone say which label is which."""

    @staticmethod
    def found(data: Path, folder: Path) -> _Images:
        tree = ImageTree.read(data)
        tree.check()
        ordered = not tree.is_ambiguous and not tree.empty
        count = sum(tree.images.values())
        return _Images(_relative(data, folder), count, len(tree.classes), ordered)


def _agreed(outputs: dict[str, int | None]) -> int | None:
    """How many classes two networks are to tell apart, by what their weights give."""
    counts = {count for name, count in outputs.items() if source_of(name) != "program"}
    if _IMAGENET in counts:
        return _IMAGENET
    return next(iter(counts)) or None if len(counts) == 1 else None


def _parent(side: str, network: str, pair: _Pair, folder: Path) -> _Rows:
    """The section of one parent."""
    rows: _Rows = [(f"  {side}:", "")]
    if source_of(network) == "program":
        path = _scalar(_relative(Path(network), folder))
        return [*rows, (f"    network: {path}", "comes with its weights")]
    rows.append((f"    network: {network}", ""))
    classes = f"{pair.classes or _SOME}"
    checkpoint = f"checkpoints/{network.replace('/', '-')}.safetensors"
    if pair.classes is not None and pair.outputs[network] == pair.classes:
        rows += [
            ("    pretrained: true", "the weights that the name stands for"),
            (f"    # or checkpoint: {checkpoint}", "yours"),
        ]
        if pair.classes != _IMAGENET and not _labels_pixels(network):
            rows.append(
                (f"    model_args: {{num_classes: {classes}}}", "as the weights have them")
            )
        return rows + _view(network)
    fitting = _fitting(network, pair.classes)
    rows += [(f"    # or network: {name}", f"pretrained on {classes} classes") for name in fitting]
    rows += [(f"    # {line}", "") for line in _why(network, pair)]
    rows.append((f"    checkpoint: {checkpoint}", "yours"))
    if fitting:
        rows.append(("    # or pretrained: true", "with one of the names above"))
    rows += [
        ("    # or train: {epochs: 10}", "from nothing, on the train split"),
        (f"    model_args: {{num_classes: {classes}}}", _whose(pair)),
    ]
    return rows + _view(network)


def _whose(pair: _Pair) -> str:
    if pair.classes is None:
        return "how many your images have; the same for both"
    return "as the images have" if pair.own else "the same for both"


def _why(network: str, pair: _Pair) -> list[str]:
    """Why a network's own weights will not do."""
    zoo, count = source_of(network), pair.outputs[network]
    if count is None:
        return [f"{zoo} has no weights of this name."]
    weights = f"The weights that {zoo} has give {count or 'no'} classes"
    others = [
        other for name, other in pair.outputs.items() if name != network and other is not None
    ]
    if pair.own:
        weights += f", the images have {pair.classes}"
    elif others and others[0] != count:
        weights += f", those of the other parent {others[0] or 'none'}"
    return [f"{weights}.", "Both parents must tell the same classes apart."]


def _fitting(network: str, classes: int | None) -> list[str]:
    """Other weights of the same architecture, for so many classes."""
    if source_of(network) != "timm" or classes is None:
        return []
    named = timm.list_pretrained(f"{network.partition('.')[0]}.*")
    return [name for name in named if zoo_outputs(name) == classes][:2]


def _view(network: str) -> _Rows:
    """How a network sees images, where it takes other sizes too."""
    config = timm_config(network) if source_of(network) == "timm" else None
    if config is None or config.fixed_input_size:
        return []
    return [(f"    # input_size: {config.input_size[-1]}", "pixels; fewer are faster")]


def _voc(data: Path | None, folder: Path) -> _Rows:
    root = "voc" if data is None else _relative(data, folder)
    return [
        ("data:", ""),
        ("  dataset: torch/voc2012", "Pascal VOC"),
        (f"  root: {_scalar(root)}", "holds VOCdevkit, with VOC2012 and VOC2007"),
        ("  train: {split: train}", "stitches are fitted on these"),
        ("  val: {split: val, images: 1000}", "the search sees these"),
        ("  test: {dataset: torch/voc2007, split: test}", "only the report sees these"),
        ("  # seed: 1", "which images are taken"),
    ]


def _imagenet() -> _Rows:
    return [
        ("data:", ""),
        ('  dataset: ""', "folders of images, one for each class"),
        ("  # Stitches are fitted on train, the search sees val, only the report sees test.", ""),
        (
            "  # The parents know ImageNet's own train split by heart, so that val is ImageNetV2.",
            "",
        ),
        ("  train: {root: imagenet/train, images: 2000}", ""),
        ("  val: {root: imagenetv2-matched-frequency-format-val, images: 1000}", ""),
        ("  test: {root: imagenet/val}", ""),
        *_more_data(),
    ]


def _folder(images: _Images | None, classes: int | None) -> _Rows:
    root = _scalar(images.root) if images else "images"
    count = 1000 if images is None else min(1000, max(1, images.count // 3))
    what = "folders of images, one for each class"
    if images is None and classes is not None:
        what = f"{classes:,} folders of images, in the order of the labels"
    return [
        ("data:", ""),
        ('  dataset: ""', what),
        (f"  root: {root}", "the three splits share it out without overlap"),
        (f"  train: {{images: {count}}}", "stitches are fitted on these"),
        (f"  val: {{images: {count}}}", "the search sees these"),
        ("  test: {}", "all others; only the report sees these"),
        *_more_data(mapped=images is not None and not images.ordered),
    ]


def _more_data(*, mapped: bool = False) -> _Rows:
    says = "names of the folders, in the order of the labels"
    return [
        (f"  {'' if mapped else '# '}class_map: classes.txt", says),
        ("  # unreadable: skip", "leaves out images that do not decode"),
        ("  # seed: 1", "which images are taken"),
    ]


def _stages() -> _Rows:
    """How stitches are made, fitted and evaluated: all of it may stay as it is."""
    return [
        ("# stitching: {points: blocks}", "where; or all, dominators"),
        ("# fit: {images: 1000, kernel: 1}", "on fewer images; smaller stitches"),
        ("# tune: {steps: 500}", "trains the fitted stitches by gradients"),
        ("# keep: {best: 40, min_r2: 0.3}", "searches only the stitches that cross well"),
        ("# evaluation: {memory: 8}", "GiB for evaluating networks; 4, if absent"),
        ("# or evaluation: {kernels: plain}", "bit for bit as the parents; or bfloat16, faster"),
        ("# or evaluation: {racing: {error_rate: 0.5, first: 250}}", "confirms what looks best"),
        ("# or evaluation: {latency: {batch_size: 1, threads: 2}}", "what latency_ms means"),
        ("# or evaluation: {latency: {runtime: onnxruntime}}", "of what an export runs in"),
    ]


def _study(quality: str) -> _Rows:
    """The section of the search."""
    return [
        ("study:", ""),
        (f"  objectives: [{quality}, macs]", "quality against cost"),
        (f"  # or objectives: [{quality}, latency_ms]", "or parameters, weight_bytes, ..."),
        (f"  # constraints: {{max_macs: 1e9, min_{quality}: 0.5}}", "max_ or min_ of any figure"),
        ("  space: flat", "a trial has every switch"),
        ("  # or space: reachable", "a trial has the switches that matter to it"),
        ("  sampler: {name: linkage}", "learns which switches belong together"),
        ("  # or sampler: {name: local_search}", "changes one switch of the front's networks"),
        ("  # or sampler: {name: nsga2, population_size: 50}", "or nsga3, tpe, random"),
        ("  # or sampler: {name: optuna.samplers.GPSampler}", "any class of samplers"),
        ("  # or sampler: {name: hub:samplers/auto_sampler:AutoSampler}", "any of OptunaHub's"),
        ("  storage: sqlite:///{run}/study.db", "{run} is the folder of the run"),
        ("  # or storage: journal:///{run}/study.journal", "one file, for workers that share it"),
        ("  # or storage: postgresql://user:password@host/database", "for many workers"),
        ("  # or storage: ${DATABASE}", "what the environment says, passwords too"),
        ("  # or storage: grpc://host:13000", "what `optuna-stitch proxy` serves"),
        ("  # artifacts: s3://bucket", "or a shared folder, for other workers"),
        ("  trials: 500", "in all, by all workers"),
        ("  batch: 10", "trials evaluated together, which saves work"),
        ("  # grace: 120", "seconds until a silent worker is taken for dead"),
        ("  # steering: {share: 0.9, over: 0.5}", "leads away from what is cheap and useless"),
        (
            "  start: {population: 50, probability: 0.05}",
            "first trials; how likely a switch is on",
        ),
        ("  # or start: {population: 50, front_of: runs/another}", "and the best of another run"),
        ("  seed: 0", "of the sampler and the first trials"),
    ]


def _labels_pixels(network: str) -> bool:
    segmenting = torchvision.models.list_models(module=torchvision.models.segmentation)
    return network.removeprefix(TORCHVISION) in segmenting and network.startswith(TORCHVISION)


def _relative(path: Path, folder: Path) -> str:
    return (
        path.as_posix() if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()
    )


def _scalar(text: str) -> str:
    """A text as YAML has it, in quotes where it needs them."""
    return yaml.safe_dump([text], default_flow_style=True, width=10**6).strip()[1:-1]


def _aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """The lines of a section, with comments below each other."""
    rows = list(rows)
    width = max(len(text) for text, comment in rows if comment and len(text) <= _WIDTH)
    return [f"{text:<{width}}  # {comment}" if comment else text for text, comment in rows]
