"""How far answers in 16 bits are from float32, measured before a search relies on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.engine import Engine
from optuna_stitch.evaluation.metrics import VOID
from optuna_stitch.evaluation.runner import Runner
from optuna_stitch.evaluation.settings import Kernels
from optuna_stitch.stitching.genotype import ENSEMBLE, Genotype, Side, single_stitch_genotypes
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.progress import console
from optuna_stitch.utils.text import number_text, percent_text

# Images that tell, and those whose every pixel is labelled.
_IMAGES, _WITH_PIXELS = 200, 20

# Single-stitch networks that are looked at, besides the parents and their ensemble.
_STITCHED = 4

# Accuracy may move by this share, or by one image.
_FAR = 0.01

# Kernels by how exact they are; left to us, the next is tried until one is near enough.
EXACTNESS: tuple[Kernels, ...] = ("float16", "bfloat16", "fast", "plain")

_NEXT = dict(pairwise(EXACTNESS[:3]))


@dataclass(frozen=True)
class Deviation:
    """How far a few networks' answers are from those in float32.

    Args:
        asked: The kernels as asked for, ``auto`` perhaps.
        kernels: By which the answers were computed.
        images: How many told.
        networks: How many networks: parents, ensemble, and some with one stitch.
        logits: The largest difference of a logit.
        accuracy: The largest difference of a network's accuracy (of its pixels, where those are
            labelled), a share.
        finite: Whether all answers are finite numbers that are in float32.
        instead_of: Which kernels were tried before, and why they were not taken.

    Example:
        >>> evaluator = st.Evaluator(supernetwork, data.val, kernels="bfloat16")
        >>> deviation = evaluator.settle()
        >>> deviation.kernels, deviation.images, deviation.accuracy < 0.1
        ('bfloat16', 200, True)
    """

    asked: Kernels
    kernels: Kernels
    images: int
    networks: int
    logits: float
    accuracy: float
    finite: bool = True
    instead_of: str = ""

    @property
    def is_near(self) -> bool:
        """Whether figures can be relied on."""
        return self.finite and self.accuracy <= max(_FAR, 1.5 / self.images)

    @property
    def text(self) -> str:
        """For people, without a full stop."""
        if not self.finite:
            return f"{self.kernels} kernels overflow"
        text = (
            f"{self.kernels} kernels: on {self.images} images, logits of {self.networks} networks "
            f"differ from float32's by at most {number_text(self.logits, 2)}, accuracy by "
            f"{percent_text(self.accuracy)}"
        )
        return f"{text} (instead of {self.instead_of})" if self.instead_of else text


def measure_deviation(
    supergraph: Supergraph,
    split: Split,
    kernels: Kernels,
    *,
    asked: Kernels,
    memory: float | None = None,
    batch_size: int,
    side: Side = "a",
) -> Deviation:
    """Compare a few networks' answers with those in float32, as ``plain`` kernels compute them.

    Args:
        supergraph: Of the supernetwork whose networks.
        split: Images to judge them on, the first of which tell.
        kernels: Any but ``auto``.
        asked: As asked for.
        memory: As for `Engine`.
        batch_size: Images per batch.
        side: Of parents with two jobs, whose answers.
    """
    whole = [Genotype(output) for output in (*supergraph.sides, ENSEMBLE)]
    single = single_stitch_genotypes(supergraph.switches)
    if supergraph.two_jobs:
        whole = [Genotype(side)]
        single = [genotype for genotype in single if genotype.output == side]
    some = single[:: max(1, len(single) // _STITCHED)][:_STITCHED]
    genotypes = [*whole, *some]
    dense = supergraph.segments_of(side)
    subnetworks = [Subnetwork.of(supergraph, genotype) for genotype in dict.fromkeys(genotypes)]
    images = min(len(split), _WITH_PIXELS if dense else _IMAGES)
    exact, fast = (
        Runner(Engine(supergraph, own, memory, batch_size), split, (), side=side).answers(
            subnetworks, images
        )
        for own in ("plain", kernels)
    )
    largest, finite = 0.0, True
    right = torch.zeros(2, len(subnetworks))
    count = 0
    for (targets, ours), (_, theirs) in zip(exact, fast, strict=True):
        counts = targets != VOID if dense else torch.ones_like(targets).bool()
        count += int(counts.sum())
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if not one.isfinite().all():
                continue  # what fails anyway tells nothing
            finite = finite and bool(other.isfinite().all())
            largest = max(largest, float((one - other).abs().max()))
            for row, logits in enumerate((one, other)):
                right[row, place] += int(((logits.argmax(1) == targets) & counts).sum())
    moved = float((right[0] - right[1]).abs().max()) / max(1, count)
    return Deviation(asked, kernels, images, len(subnetworks), largest, moved, finite)


def settle_kernels(
    supergraph: Supergraph,
    split: Split,
    kernels: Kernels,
    *,
    asked: Kernels,
    memory: float | None,
    batch_size: int,
    side: Side = "a",
) -> Deviation:
    """Kernels that are near float32, and how near: asked for once for every supernetwork.

    Where they are left to us, the next ones are taken if these overflow or are far; others are
    taken as they are. Both is said.

    Args:
        supergraph: Of the supernetwork that is evaluated.
        split: The images that it is evaluated on.
        kernels: 16-bit ones.
        asked: As asked for; ``auto`` leaves them to us.
        memory: As for `Engine`.
        batch_size: Images per batch.
        side: Of parents with two jobs, whose answers.
    """
    known = _settled.setdefault(supergraph, {})
    if (asked, side) in known:
        return known[asked, side]
    refused: list[str] = []
    while True:
        found = measure_deviation(
            supergraph,
            split,
            kernels,
            asked=asked,
            memory=memory,
            batch_size=batch_size,
            side=side,
        )
        if found.is_near or asked != "auto" or kernels not in _NEXT:
            break
        refused.append(_why(found))
        kernels = _NEXT[kernels]
    found = replace(found, instead_of=" and ".join(refused))
    console.print(f"{found.text[:1].upper()}{found.text[1:]}.", highlight=False, soft_wrap=True)
    if not found.is_near:
        console.print(
            f"Figures in {found.kernels} cannot be relied on: take other `kernels` "
            "(`bfloat16`, or `fast`) for `evaluation`, in another run.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    known[asked, side] = found
    return found


def _why(found: Deviation) -> str:
    if not found.finite:
        return f"{found.kernels}, which overflows"
    return f"{found.kernels}, which moves accuracy by {percent_text(found.accuracy)}"


_settled: WeakKeyDictionary[Supergraph, dict[tuple[Kernels, Side], Deviation]] = (
    WeakKeyDictionary()
)
