"""How long subnetworks take: every operation is timed once, and added up.

A subnetwork's operations run one after the other, so that the sum of their times is that of the
network, up to what the processor's caches make of the order. `tests/benchmarks/latency.py`
compares both.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from optuna_stitch.evaluation.pieces import read_table, time_here, write_pieces
from optuna_stitch.evaluation.settings import LatencyRuntime, LatencySettings
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.device import device_name, synchronize
from optuna_stitch.utils.errors import ArtifactError, ConfigError, first_line
from optuna_stitch.utils.files import write_text
from optuna_stitch.utils.progress import track

# What is slow only the first times does not count: kernels that are chosen, memory that grows.
_WARM_UP = 3


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of every operation of a supernetwork; call it for those of a subnetwork.

    Args:
        batch_size: Images at once.
        threads: Number of threads.
        milliseconds: By name of the operation.
        single: The same for one image; None where that is the batch, or it was not measured.
        device: Where they were measured.
        runtime: What measured them; see `LatencySettings`.
    """

    batch_size: int
    threads: int
    milliseconds: dict[str, float]
    single: dict[str, float] | None = None
    device: str = "cpu"
    runtime: LatencyRuntime = "torch"

    def __call__(self, subnetwork: Subnetwork) -> float:
        """Milliseconds for one batch, the sum over all that the output needs.

        Of a cascade, the mean over batches: images that go on are a smaller batch, whose time lies
        on the line through that of one image and that of a whole batch.
        """
        if not subnetwork.is_cascade:
            return self.worst(subnetwork)
        first = self.worst(subnetwork.first)
        rest = self.worst(subnetwork) - first
        count = (subnetwork.threshold or 0.0) * self.batch_size
        if self.single is None or count >= self.batch_size:
            return first + count / self.batch_size * rest
        alone = _total(self.single, subnetwork) - _total(self.single, subnetwork.first)
        if count < 1:
            return first + count * alone
        return first + alone + (count - 1) / (self.batch_size - 1) * (rest - alone)

    def worst(self, subnetwork: Subnetwork) -> float:
        """Milliseconds for a batch of images that all go on.

        Args:
            subnetwork: Whose latency.
        """
        return _total(self.milliseconds, subnetwork)

    def save(self, path: Path) -> None:
        """Write the times down, so that every worker of a study counts with the same.

        Args:
            path: The file.
        """
        write_text(path, json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(path: Path) -> Latencies:
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            ArtifactError: If the file is something else.
        """
        try:
            return Latencies(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"The latencies in {path} cannot be read: {error}. Remove the file, and they are "
                "measured again."
            ) from error


def measure_latency(
    supergraph: Supergraph,
    settings: LatencySettings | None = None,
    *,
    rounds: int = 30,
    show_progress_bar: bool = False,
) -> Latencies:
    """Time every operation of a supernetwork on this machine.

    Both parents and all stitches run, as they do in extracted modules, or in pieces by
    onnxruntime; the median of several rounds counts.

    Args:
        supergraph: The computation of the supernetwork whose operations are timed.
        settings: For which batch size and number of threads; one image, if None.
        rounds: How often every operation runs.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        ConfigError: If a runtime or an operator of it is missing, or times are to be imported.
    """
    settings = settings or LatencySettings()
    if settings.runtime == "imported":
        raise ConfigError(
            "There is no table of latencies yet. Write the pieces with `optuna-stitch latency "
            "export`, run measure.py on the device, and take its table in with `optuna-stitch "
            "latency import`; or measure here: `latency: {runtime: onnxruntime}`."
        )
    if settings.runtime == "onnxruntime":
        with tempfile.TemporaryDirectory(prefix="optuna-stitch-") as folder:
            write_pieces(supergraph, Path(folder), settings)
            return _of_table(time_here(Path(folder), rounds), supergraph, "The table")
    used, milliseconds = _time(supergraph, settings, rounds, show_progress_bar)
    single = None
    if settings.batch_size > 1:
        alone = settings.model_copy(update={"batch_size": 1})
        _, single = _time(supergraph, alone, rounds, show_progress_bar)
    device = device_name(supergraph.device)
    return Latencies(settings.batch_size, used, milliseconds, single, device)


def import_latencies(path: Path, supergraph: Supergraph) -> Latencies:
    """Take in the table that a device wrote which timed the pieces of a supernetwork.

    Args:
        path: The table.
        supergraph: The computation of the supernetwork.

    Raises:
        ArtifactError: If it is no such table, not whole, or of another supernetwork.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"The table {path} cannot be read: {first_line(error)}. Name the latency.json that "
            "measure.py writes."
        ) from error
    return replace(_of_table(table, supergraph, f"The table {path}"), runtime="imported")


def _of_table(table: Any, supergraph: Supergraph, where: str) -> Latencies:
    times = read_table(table, supergraph, where)
    several = times.batch_size > 1
    return Latencies(
        times.batch_size,
        times.threads,
        times.milliseconds[times.batch_size],
        times.milliseconds[1] if several else None,
        times.device,
        "onnxruntime",
    )


def _total(milliseconds: Mapping[str, float], subnetwork: Subnetwork) -> float:
    return sum(milliseconds[operation.name] for operation in subnetwork.operations)


def _time(
    supergraph: Supergraph, settings: LatencySettings, rounds: int, show_progress_bar: bool
) -> tuple[int, dict[str, float]]:
    """The number of threads, and milliseconds of every operation."""
    operations = supergraph.operations
    read = {place for operation in operations for place in operation.inputs}
    program = Program(
        operations,
        [(place, operation.inputs) for place, operation in enumerate(operations)],
        [place for place in range(len(operations)) if place not in read],
    )
    device = supergraph.device
    images = [
        torch.randn(settings.batch_size, *view.input_size).to(device) for view in supergraph.views
    ]
    taken: dict[str, list[float]] = {}
    with _threads(settings.threads) as used, torch.inference_mode():
        for _ in range(_WARM_UP):
            program.run(images)
        for _ in track(range(rounds), "Time operations", show_progress_bar=show_progress_bar):
            clock = Clock(device)
            steps: list[int] = []
            for step, _ in program.values(images):
                clock.mark()
                steps.append(step)
            for step, spent in zip(steps, clock.read(), strict=True):
                taken.setdefault(program.operations[step].name, []).append(spent)
    median = {name: statistics.median(times) for name, times in taken.items()}
    return used, median


class Clock:
    """Marks in time on a device, without waiting for it where it keeps time itself.

    On a GPU operations run one after the other while the processor hands out more of them: an
    event after each says when it ended.

    Args:
        device: Whose time; it starts when all that it was given before is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        synchronize(device)
        self.mark()

    def mark(self) -> None:
        """Mark when all that was asked for before is done."""
        if self._device.type in ("cuda", "xpu"):
            module = torch.cuda if self._device.type == "cuda" else torch.xpu
            event = module.Event(enable_timing=True)
            event.record(module.current_stream(self._device))
            self._marks.append(event)
        else:
            synchronize(self._device)
            self._marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """Milliseconds between each mark and the one before it."""
        synchronize(self._device)
        return [
            1e3 * (after - before) if isinstance(after, float) else before.elapsed_time(after)
            for before, after in pairwise(self._marks)
        ]


def latency_ms(subnetwork: Subnetwork) -> float:
    """Milliseconds of a subnetwork by the supernetwork's latencies; of a cascade, on average.

    Where `use_latencies` gave it none, operations are timed at the first call, for one image.

    Args:
        subnetwork: Whose latency.
    """
    return _latencies_of(subnetwork.supergraph)(subnetwork)


def worst_latency_ms(subnetwork: Subnetwork) -> float:
    """The same for images that all go on.

    Args:
        subnetwork: Whose latency.
    """
    return _latencies_of(subnetwork.supergraph).worst(subnetwork)


def _latencies_of(supergraph: Supergraph) -> Latencies:
    latencies = _measured.get(supergraph)
    if latencies is None:
        latencies = _measured[supergraph] = measure_latency(supergraph)
    return latencies


def use_latencies(supergraph: Supergraph, latencies: Latencies) -> None:
    """Say what the metric ``latency_ms`` shall count with.

    Args:
        supergraph: The computation of the supernetwork for whose subnetworks it counts.
        latencies: What to count with.
    """
    _measured[supergraph] = latencies


def measure_alike(supergraph: Supergraph, like: Supergraph) -> None:
    """Time operations as another supernetwork's were timed, where they were.

    Args:
        supergraph: Whose operations to time.
        like: The other one.
    """
    if like in _measured:
        known = _measured[like]
        if known.runtime == "imported":
            raise ConfigError(
                f"Latencies were measured elsewhere ({known.device}), where nobody timed other "
                "networks that a report compares with. Leave `report.baselines` out; of two jobs, "
                "leave latencies out, or measure here: `latency: {runtime: onnxruntime}`."
            )
        settings = LatencySettings(
            batch_size=known.batch_size, threads=known.threads, runtime=known.runtime
        )
        _measured[supergraph] = measure_latency(supergraph, settings)


_measured: WeakKeyDictionary[Supergraph, Latencies] = WeakKeyDictionary()


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
