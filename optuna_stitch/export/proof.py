"""Run every exported file on validation images, in its own runtime, before it is handed over."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Accumulator, Confusions, Hits
from optuna_stitch.evaluation.metrics import LearnedMetric, quality_metric, unit_of
from optuna_stitch.evaluation.significance import paired_p_value
from optuna_stitch.export.formats import FORMATS
from optuna_stitch.export.onnx_file import Answer
from optuna_stitch.export.trace import Traced
from optuna_stitch.stitching.genotype import BOTH, SIDES, Side
from optuna_stitch.stitching.subnetwork import CascadeModule
from optuna_stitch.utils.errors import ArtifactError, ExportError
from optuna_stitch.utils.progress import track
from optuna_stitch.utils.text import p_value_text, percent_text, points_text

# Where a folder says what its files were found to do.
CONFIG = "config.json"

# Images that are timed one by one, of each kind that a cascade knows.
_TIMED = 8

# How often each of them is, at least and at most, and after how many seconds that is enough.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 5, 30, 1.0


@dataclass(frozen=True)
class Kept:
    """What of a network's answers is kept in a file, on the same images.

    Args:
        metric: What tells how good answers are: ``accuracy``, or ``mean_iou``.
        quality: Of the file, as a share of 1.
        judged: Of the network that it shall be.
        p_value: That both are equally good: McNemar's for accuracy, the paired bootstrap's for
            mean IoU.
        agreement: Share of the images, or pixels, that both give the same class.
    """

    metric: str
    quality: float
    judged: float
    p_value: float
    agreement: float

    @property
    def difference(self) -> float:
        """Quality of the file less that of the network, as a share of 1."""
        return self.quality - self.judged


@dataclass(frozen=True)
class Proof:
    """What a file did in its own runtime.

    Args:
        format: Which format it is.
        file: Its name.
        runtime: What ran it, with its version.
        threads: How many it had.
        images: How many validation images it answered.
        answers: What is kept of its answer, by side; by nothing, where there is one.
        latency_ms: Milliseconds for one image; of a cascade, on average.
        worst_latency_ms: The same for images that go on.
        bytes: On the disk.
    """

    format: str
    file: str
    runtime: str
    threads: int
    images: int
    answers: Mapping[str, Kept]
    latency_ms: float
    worst_latency_ms: float
    bytes: int

    @property
    def drop(self) -> float:
        """How much quality is lost, of the answer that loses most; as a share of 1."""
        return max(kept.judged - kept.quality for kept in self.answers.values())


class _Judge:
    """Answers to one question of the network and of its files, image by image.

    Args:
        metric: What tells how good they are.
        classes: Number of classes.
        files: Names of the files.
    """

    def __init__(self, metric: LearnedMetric, classes: int, files: Sequence[str]) -> None:
        self._metric = metric
        self._judged, *given = (
            Accumulator([metric], classes, per_image=True) for _ in range(len(files) + 1)
        )
        self._given = dict(zip(files, given, strict=True))
        self._same = dict.fromkeys(files, 0)
        self._all = 0

    def update(self, expected: Tensor, found: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add a batch.

        Args:
            expected: Logits of the network.
            found: Logits of each file.
            labels: What is right.
        """
        named = {self._metric.name: labels}
        self._judged.update(expected, named, finite=True)
        guesses = expected.argmax(dim=1)
        self._all += guesses.numel()
        for file, logits in found.items():
            # what is no number is no answer either: it counts as the class that argmax says
            self._given[file].update(logits, named, finite=True)
            self._same[file] += int((logits.argmax(dim=1) == guesses).sum())

    def kept(self, file: str) -> Kept:
        """What is kept in a file.

        Args:
            file: Its name.
        """
        name = self._metric.name
        own, judged = (one.results()[name] for one in (self._given[file], self._judged))
        assert isinstance(own, Hits | Confusions)
        assert isinstance(judged, Hits | Confusions)
        agreement = self._same[file] / self._all
        p_value = 1.0 if agreement == 1 else paired_p_value(own, judged)
        return Kept(name, own.figure, judged.figure, p_value, agreement)


@torch.no_grad()
def prove(
    names: Sequence[str],
    folder: Path,
    traced: Traced,
    validation: Split | SplitPair,
    *,
    show_progress_bar: bool = False,
) -> list[Proof]:
    """Run files on validation images, beside the network that they shall be.

    Args:
        names: Formats; those whose runtime is not on this machine are left out.
        folder: Where their files are.
        traced: The network that was judged.
        validation: Labelled images; of two questions, of both.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per file.
    """
    networks: dict[str, Callable[..., Answer]] = {}
    format_of: dict[str, str] = {}
    for name in names:
        if not FORMATS[name].lacks():
            loaded = FORMATS[name].networks(folder)
            networks |= loaded
            format_of |= dict.fromkeys(loaded, name)
    supergraph, module = traced.subnetwork.supergraph, traced.module
    places = [supergraph.views.index(view) for view in traced.views.values()]
    both = traced.subnetwork.output == BOTH
    asked: list[tuple[Side, str, Split]] = [("a", "", validation)]  # type: ignore[list-item]
    if isinstance(validation, SplitPair):
        asked = [(side, side, validation.of(side)) for side in SIDES]
    judges: dict[str, _Judge] = {}
    went_on: list[Tensor] = []
    images = 0
    for side, key, split in asked:
        metric = quality_metric(segments=supergraph.segments_of(side))
        judge = judges[key] = _Judge(metric, supergraph.classes_of(side), list(networks))
        batches = split.batches(
            supergraph.views,
            supergraph.batch_size,
            masks_as=supergraph.view_of[side] if both else None,
        )
        count = -(-len(split) // supergraph.batch_size)
        for batch in track(batches, "Run files", total=count, show_progress_bar=show_progress_bar):
            given = [batch.images[place] for place in places]
            expected = _answer_to(module(*given), key)
            found = {file: _answer_to(run(*given), key) for file, run in networks.items()}
            judge.update(expected, found, batch.targets)
            went_on.append(_goes_on(module, given))
        images += len(split)
    unsure = torch.cat(went_on)
    some = asked[0][2]
    kinds = [(~unsure[: len(some)]).nonzero()[:, 0], unsure[: len(some)].nonzero()[:, 0]]
    positions = [kind[:_TIMED].tolist() for kind in kinds]
    pictures = [
        [
            [some.pick([position], supergraph.views).images[place] for place in places]
            for position in chosen
        ]
        for chosen in positions
    ]
    share = float(unsure.double().mean())
    times = _milliseconds(networks, pictures)
    return [
        Proof(
            format=format_of[file],
            file=file,
            runtime=FORMATS[format_of[file]].version,
            threads=torch.get_num_threads(),
            images=images,
            answers={key: judge.kept(file) for key, judge in judges.items()},
            latency_ms=_mean(times[file], share),
            worst_latency_ms=max(time for time in times[file] if time is not None),
            bytes=FORMATS[format_of[file]].size(file, folder),
        )
        for file in networks
    ]


def _answer_to(answer: Answer, key: str) -> Tensor:
    """The answer to one question."""
    return answer[key] if isinstance(answer, dict) else answer


def _goes_on(module: Any, given: Sequence[Tensor]) -> Tensor:
    """Which images of a batch a cascade computes further, ``(N,)`` bool; else none."""
    if not isinstance(module, CascadeModule):
        return torch.zeros(len(given[0]), dtype=torch.bool)
    found: Tensor = module.exit.goes_on(module.first(*given)[0])
    return found


def _milliseconds(
    networks: Mapping[str, Callable[..., Answer]],
    pictures: Sequence[Sequence[Sequence[Tensor]]],
) -> dict[str, list[float | None]]:
    """Median milliseconds for one image, of those that stay and of those that go on, by file.

    Files take turns, so that a machine that slows down is fair to all.

    Args:
        networks: What is timed.
        pictures: Images of both kinds, by input.
    """
    taken: dict[str, list[list[float]]] = {file: [[] for _ in pictures] for file in networks}
    for network in networks.values():
        for images in (images for kind in pictures for images in kind[:3]):
            network(*images)  # what is slow only the first times does not count
    began = time.perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= _ROUNDS and time.perf_counter() - began > _SECONDS * len(networks):
            break
        for file, network in networks.items():
            for column, kind in zip(taken[file], pictures, strict=True):
                for images in kind:
                    start = time.perf_counter()
                    network(*images)
                    column.append(1e3 * (time.perf_counter() - start))
    return {
        file: [statistics.median(column) if column else None for column in columns]
        for file, columns in taken.items()
    }


def _mean(times: Sequence[float | None], share: float) -> float:
    """Of images, a share of which go on."""
    stays, goes = times
    if stays is None or goes is None:
        return next(time for time in times if time is not None)
    return stays + share * (goes - stays)


def check_drop(proofs: Sequence[Proof], names: Sequence[str], max_drop: float) -> None:
    """Refuse files that lose too much.

    Args:
        proofs: What files did.
        names: The formats that were asked for.
        max_drop: Points of quality that a file may lose.

    Raises:
        ExportError: Says by how much, and what to take instead.
    """
    unproven = [name for name in names if name not in {proof.format for proof in proofs}]
    if unproven:
        raise ExportError(
            f"Nobody knows what {unproven[0]} loses: {FORMATS[unproven[0]].lacks()}, so that the "
            "file cannot be run here. Nothing was written. Export it where it can be, or without "
            "`--max-drop`."
        )
    worst = max(proofs, key=lambda proof: proof.drop)
    # in whole images: a share of them is no round number in binary
    if 100 * worst.drop <= max_drop + 1e-9:
        return
    side, kept = min(worst.answers.items(), key=lambda item: item[1].difference)
    losing = {proof.format for proof in proofs if 100 * proof.drop > max_drop + 1e-9}
    within = [proof for proof in proofs if proof.format not in losing]
    instead = "Take onnx or python, which answer as the network does."
    if within:
        told = max(within, key=lambda proof: proof.drop)
        instead = f"Take {told.format}, which loses {_points(told.drop)}."
    elif "onnx-float16" not in losing:
        instead = "Take onnx-float16, or onnx or python, which answer as the network does."
    whose = f" of answer {side}" if side else ""
    raise ExportError(
        f"As {worst.format} ({worst.file}) the network loses {_points(worst.drop)} points of "
        f"{unit_of(kept.metric).words}{whose}, from {percent_text(kept.judged)} to "
        f"{percent_text(kept.quality)} on {worst.images} validation images (p = "
        f"{p_value_text(kept.p_value)}); {max_drop:g} may be lost. Nothing was written. {instead}"
    )


def _points(share: float) -> str:
    return f"{100 * max(0.0, share):.2f}"


def proof_cells(proofs: Sequence[Proof]) -> tuple[list[str], list[list[str]]]:
    """What files did, for a table.

    Args:
        proofs: At least one.

    Returns:
        The names of the columns, and rows.
    """
    metric = next(iter(proofs[0].answers.values())).metric
    same = all(kept.metric == metric for proof in proofs for kept in proof.answers.values())
    head = ["file", "runtime", unit_of(metric).words if same else "quality"]
    rows = [
        [
            f"{proof.file}, {side}" if side else proof.file,
            proof.runtime.split()[0],
            percent_text(kept.quality),
            points_text(kept.difference),
            p_value_text(kept.p_value),
            f"{proof.latency_ms:.3g}",
            f"{proof.bytes / 1e6:.3g}",
        ]
        for proof in proofs
        for side, kept in proof.answers.items()
    ]
    return [*head, "points", "p", "ms", "MB"], rows


def unproven_note(names: Sequence[str]) -> str:
    """Say which formats no runtime on this machine can run, in sentences; nothing, if none.

    Args:
        names: The formats that were asked for.
    """
    lacking = {name: FORMATS[name].lacks() for name in names}
    return " ".join(
        f"{FORMATS[name].files[0]} was written and not run: {why}."
        for name, why in lacking.items()
        if why
    )


def proof_note(proofs: Sequence[Proof]) -> str:
    """What the columns of `proof_cells` mean, in sentences.

    Args:
        proofs: At least one.
    """
    threads = proofs[0].threads
    runtimes = ", ".join(dict.fromkeys(proof.runtime for proof in proofs))
    return (
        f"On {proofs[0].images:,} validation images, each file by its runtime on this machine: "
        f"{runtimes}. "
        "*points*: difference to the network that was judged; *p* by a paired test on the "
        "same images (McNemar's; of pixels, the bootstrap), not corrected; *ms*: for one image, "
        f"with {threads} thread{'s' if threads > 1 else ''}; of a cascade on average."
    )


def proof_config(proofs: Sequence[Proof]) -> list[dict[str, Any]]:
    """What ``config.json`` says of files.

    Args:
        proofs: What they did.
    """
    return [asdict(proof) for proof in proofs]


def read_proofs(folder: Path) -> list[Proof]:
    """Read what `export_subnetwork` found out about the files of a folder.

    Args:
        folder: The folder.

    Returns:
        One entry per file; none, where it had no validation images.

    Raises:
        ArtifactError: If the folder is no export.
    """
    path = folder / CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8")).get("files", [])
        return [
            Proof(**{**one, "answers": {k: Kept(**kept) for k, kept in one["answers"].items()}})
            for one in said
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}. Export the network again."
        ) from error
