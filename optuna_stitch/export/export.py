"""Export a subnetwork into a folder that anybody can load without this package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
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
from optuna_stitch.export.check import check_format, images_of
from optuna_stitch.export.formats import FORMATS, select_formats
from optuna_stitch.export.trace import trace
from optuna_stitch.stitching.genotype import SIDES
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import ExportError

CONFIG = "config.json"

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
) -> Path:
    """Write a subnetwork into a folder, in formats that need none of us to run.

    Beside the network: ``config.json`` for timm's transform, a drawing, and a model card. Every
    format is loaded again and compared with the extracted module.

    Args:
        subnetwork: The subnetwork; a cascade with its exit, as `Evaluator.tune_exits` returns it.
        to: The folder; made if it is not there.
        split: Images to compare on, such as the test split; random ones, if None.
        origin: Where the network comes from, for its card; if None, the card says what the
            network itself knows.
        formats: ``python``: one file of code and one of weights, bit for bit the same network;
            ``program``: by ``torch.export.save``, likewise; ``onnx``: up to 1e-4; ``all``. As
            ``python`` and ``program`` a cascade computes further only what goes on of a batch;
            as ``onnx`` it is two files, one for batches that computes both heads for every image,
            and one for one image that stops where the first answer is enough. A network of
            parents with two jobs has two named outputs, ``a`` and ``b``.
        force: Whether to replace files of an earlier export.

    Returns:
        The folder.

    Raises:
        ExportError: If a format is unknown or cannot hold this network, a cascade has no exit, the
            folder cannot be written or has files in it, or what was written computes something
            else.

    Example:
        >>> subnetwork = supernetwork.subnetwork({"output": "a"})
        >>> folder = st.export_subnetwork(subnetwork, tmp_path / "network", split=data.val)
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'network.py', 'network.safetensors', 'network.svg']
    """
    to, selected = Path(to), select_formats(formats)
    check_folder(to, force=force)
    supergraph = subnetwork.supergraph
    if origin is None:
        graphs = supergraph.graphs
        origin = Origin({side: ParentOrigin(graphs[side].name) for side in SIDES})
    if subnetwork.is_cascade:
        exit_of(subnetwork)  # without one there is nothing to trace
    traced = trace(subnetwork, title=describe(subnetwork, origin))
    parents = [origin.parents[side].name for side in SIDES]
    trial = [] if origin.trial is None else [f"trial-{origin.trial}"]
    config = timm_config(
        "--".join([*parents, *trial]),
        supergraph.classes,
        traced.views,
        class_names=origin.class_names,
        licence=licence_of(subnetwork, origin),
        cascade=cascade_config(subnetwork) if subnetwork.is_cascade else None,
        answers=answers_of(subnetwork, origin),
    )
    card = write_card(subnetwork, origin, traced.views, selected)
    drawing = subnetwork.draw(title=None if origin.trial is None else f"Trial {origin.trial}")
    images = images_of(traced, split)
    with _staged(to, force=force) as folder:
        for name in selected:
            FORMATS[name].write(traced, folder)
            check_format(name, folder, traced, images)
        (folder / CONFIG).write_text(config, encoding="utf-8")
        drawing.write(folder / DRAWING)
        (folder / CARD).write_text(card, encoding="utf-8")
    return to


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
        (aside / name).replace(target / name)
    for name in set(replaceable) - set(written):
        (target / name).unlink(missing_ok=True)
