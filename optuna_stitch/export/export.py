"""Export a subnetwork into a folder that anybody can load without this package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.export.card import (
    DRAWING,
    Origin,
    ParentOrigin,
    answers_of,
    describe,
    licence_of,
    timm_config,
    write_card,
)
from optuna_stitch.export.cascade_text import cascade_config, exit_of
from optuna_stitch.export.check import calibration_of, check_format, images_of
from optuna_stitch.export.formats import FORMATS, select_formats
from optuna_stitch.export.proof import CONFIG, check_drop, proof_config, prove
from optuna_stitch.export.trace import trace
from optuna_stitch.stitching.genotype import BOTH
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import ExportError

CARD = "README.md"

# All that an export may write, the card last.
FILES = (*(name for form in FORMATS.values() for name in form.files), CONFIG, DRAWING, CARD)


def export_subnetwork(
    subnetwork: Subnetwork,
    to: str | Path,
    *,
    split: Split | SplitPair | None = None,
    origin: Origin | None = None,
    formats: Sequence[str] = ("python",),
    force: bool = False,
    validation: Split | SplitPair | None = None,
    train: Split | SplitPair | None = None,
    max_drop: float | None = None,
    show_progress_bar: bool = False,
) -> Path:
    """Write a subnetwork into a folder, in formats that need none of us to run.

    Beside the network: ``config.json`` for timm's transform, a drawing, and a model card. Every
    format is loaded again and compared with the extracted module, and with validation images
    every file is judged in its own runtime: how good it is, and how fast.

    Args:
        subnetwork: The subnetwork; a cascade with its exit, as `Evaluator.tune_exits` returns it.
        to: The folder; made if it is not there.
        split: Images to compare on, such as the test split; if None, those of ``validation``,
            or random ones.
        origin: Where the network comes from, for its card; if None, the card says what the
            network itself knows.
        formats: ``python``: one file of code and one of weights, bit for bit the same network;
            ``program``: by ``torch.export.save``, likewise; ``onnx``: up to 1e-4; ``all`` of
            these; and for a certain target ``onnx-float16``, ``onnx-int8``, ``openvino``,
            ``tensorrt`` and ``coreml``. As ``python`` and ``program`` a cascade computes further
            only what goes on of a batch; as ``onnx`` it is two files, one for batches that
            computes both heads for every image, and one for one image that stops where the first
            answer is enough. A network of parents with two jobs has two named outputs, ``a`` and
            ``b``.
        force: Whether to replace files of an earlier export.
        validation: Labelled images that files are judged on.
        train: Images by which ``onnx-int8`` chooses its ranges; labels are not read.
        max_drop: If given, points of accuracy (or mean IoU) that a file may lose on the
            validation images; nothing is written, where one loses more.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        ExportError: If a format is unknown or cannot hold this network, a cascade has no exit, the
            folder cannot be written or has files in it, what was written computes something
            else or loses more than ``max_drop``, or images are missing that a format needs.

    Example:
        >>> subnetwork = supernetwork.subnetwork({"output": "a"})
        >>> folder = st.export_subnetwork(subnetwork, tmp_path / "network", split=data.val)
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'network.py', 'network.safetensors', 'network.svg']
    """
    to, selected = Path(to).expanduser(), select_formats(formats)
    check_folder(to, force=force)
    check_max_drop(max_drop)
    _check_images(subnetwork, selected, validation, train, max_drop)
    supergraph = subnetwork.supergraph
    if origin is None:
        graphs = supergraph.graphs
        origin = Origin({side: ParentOrigin(graph.name) for side, graph in graphs.items()})
    if subnetwork.is_cascade:
        exit_of(subnetwork)  # without one there is nothing to trace
    traced = trace(subnetwork, title=describe(subnetwork, origin))
    if train is not None and "onnx-int8" in selected:
        traced = replace(traced, calibration=calibration_of(traced, train))
    parents = [origin.parents[side].name for side in supergraph.sides]
    trial = [] if origin.trial is None else [f"trial-{origin.trial}"]
    drawing = subnetwork.draw(title=None if origin.trial is None else f"Trial {origin.trial}")
    images = images_of(traced, validation if split is None else split)
    with _staged(to, force=force) as folder:
        for name in selected:
            FORMATS[name].write(traced, folder)
            if not FORMATS[name].lacks():
                check_format(name, folder, traced, images)
        proofs = []
        if validation is not None:
            proofs = prove(
                selected, folder, traced, validation, show_progress_bar=show_progress_bar
            )
            if max_drop is not None:
                check_drop(proofs, selected, max_drop)
        config = timm_config(
            "--".join([*parents, *trial]),
            supergraph.classes,
            traced.views,
            class_names=origin.class_names,
            licence=licence_of(subnetwork, origin),
            cascade=cascade_config(subnetwork) if subnetwork.is_cascade else None,
            answers=answers_of(subnetwork, origin),
            files=proof_config(proofs),
        )
        card = write_card(subnetwork, origin, traced.views, selected, proofs)
        (folder / CONFIG).write_text(config, encoding="utf-8")
        drawing.write(folder / DRAWING)
        (folder / CARD).write_text(card, encoding="utf-8")
    return to


def check_max_drop(max_drop: float | None) -> None:
    """Check how much a file may lose.

    Args:
        max_drop: Points of quality.

    Raises:
        ExportError: If it is no such number.
    """
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise ExportError(
            f"A file may lose 0 to 100 points of its quality, not {max_drop:g}: `--max-drop 0.5`."
        )


def _check_images(
    subnetwork: Subnetwork,
    formats: Sequence[str],
    validation: Split | SplitPair | None,
    train: Split | SplitPair | None,
    max_drop: float | None,
) -> None:
    """Raise where images are missing, before anything is computed."""
    inexact = [name for name in formats if FORMATS[name].tolerance is None]
    inexact = [name for name in inexact if not FORMATS[name].lacks()]
    if validation is None and (max_drop is not None or inexact):
        what = f"as {inexact[0]} " if inexact else ""
        raise ExportError(
            f"What a network loses {what}shows on validation images only: give `validation`, a "
            "split with labels, or choose another format, such as python, without `max_drop`."
        )
    if isinstance(validation, SplitPair) != (subnetwork.output == BOTH) and validation:
        raise ExportError(
            "A network that answers two questions is judged on both: `validation` is a pair of "
            "splits for it, as `DataPair.val`, and one split for other networks."
        )
    if train is None and "onnx-int8" in formats:
        raise ExportError(
            "The format onnx-int8 needs calibration images, which say how large values become: "
            "give `train`, a split of the data, or choose another format, onnx or onnx-float16."
        )


def check_folder(to: Path, *, force: bool) -> None:
    """Check that a folder may be written into.

    Args:
        to: The folder; it need not be there.
        force: Whether it may have files in it.

    Raises:
        ExportError: If it may not.
    """
    if to.exists() and not to.is_dir():
        raise ExportError(f"{to} is a file. Name a folder to export into.")
    held = sorted(path.name for path in to.iterdir()) if to.is_dir() else []
    if held and not force:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise ExportError(
            f"The folder {to} has files in it: {', '.join(held[:3])}{more}. Name another one, or "
            "replace what an export writes with `--force`; other files stay."
        )


@contextmanager
def _staged(to: Path, *, force: bool) -> Iterator[Path]:
    """Give a folder beside another one to write files into, and move them at the end.

    Args:
        to: Where the files shall be. Files of an earlier export that are not written anew are
            removed: they may be of another network.
        force: Whether there may be files there.

    Yields:
        The folder to write into.

    Raises:
        ExportError: If the files cannot be written.
    """
    check_folder(to, force=force)
    target = Path(os.path.abspath(to))
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir(parents=True)
        yield aside
        _move(aside, target, replaceable=FILES)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ExportError(
            f"The network cannot be written to {to}: {reason}. Make room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, target: Path, *, replaceable: Collection[str]) -> None:
    if not target.exists():
        aside.rename(target)
        return
    written = [path.name for path in aside.iterdir()]
    for name in written:
        if (target / name).is_dir():
            _remove(target / name)
        (aside / name).replace(target / name)
    for name in set(replaceable) - set(written):
        _remove(target / name)


def _remove(path: Path) -> None:
    """Remove a file, or a format that is a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
