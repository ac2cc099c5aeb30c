"""Figures remembered across trials, processes and runs, in a table of a database.

A record is found by the supernetwork's content, the split's images, the kernels, and the canonical
form of the genotype. Workers may write side by side: two that judged the same subnetwork wrote the
same figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import sqlalchemy as sa
import torch
from torch import Tensor

from optuna_stitch.evaluation.accumulator import Hits, MixableResult, Scores
from optuna_stitch.evaluation.cascades import Curve
from optuna_stitch.evaluation.settings import CascadeSettings, Kernels
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.storage.rdb import open_engine
from optuna_stitch.storage.retry import RETRY_TIMEOUT, START_TIMEOUT, retry
from optuna_stitch.utils.errors import StudyError, first_line

T = TypeVar("T")

_TABLE = sa.Table(
    "optuna_stitch_evaluations",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(32), nullable=False, unique=True),
    sa.Column("supernetwork", sa.String(16), nullable=False),
    sa.Column("split", sa.String(16), nullable=False),
    sa.Column("kernels", sa.String(16), nullable=False),
    sa.Column("genotype", sa.Text, nullable=False),
    sa.Column("figures", sa.Text, nullable=False),
    sa.Column("outcomes", sa.LargeBinary, nullable=False),
    sa.Column("failed", sa.Text, nullable=False),
)

# Databases limit how many values one query may name.
_AT_ONCE = 500

# Servers give numbers before they commit, in any order: a row may come after so many
# that have higher numbers.
_OUT_OF_ORDER = 500


@dataclass(frozen=True)
class CachedResult:
    """What a full evaluation of one subnetwork found.

    Args:
        figures: By the metrics' recorded names.
        outcomes: Right or wrong by image, ``(N,)`` bool, in the split's order; by metric.
        failed: The operation that made the first value that is no number, or nothing.
        curve: Of a cascade, what every threshold gives, by the metrics' recorded names; figures
            and outcomes are empty then.
    """

    figures: dict[str, float]
    outcomes: dict[str, Tensor]
    failed: str = ""
    curve: Curve | None = None


class ResultCache:
    """The records of one supernetwork on one split.

    Args:
        database: URL or engine of a database; the table is made where there is none.
        supernetwork: `Supernetwork.content_hash`.
        split: `Split.fingerprint`.
        kernels: How figures are computed.
        cascades: How cascades decide and answer.
        retry_timeout: Seconds for which a database that cannot be reached is tried again.

    Raises:
        StudyError: If the database cannot be used.
    """

    def __init__(
        self,
        database: str | sa.Engine,
        supernetwork: str,
        split: str,
        kernels: Kernels,
        *,
        cascades: CascadeSettings | None = None,
        retry_timeout: float = RETRY_TIMEOUT,
    ) -> None:
        self._retry_timeout = retry_timeout
        self._scope = {"supernetwork": supernetwork, "split": split, "kernels": kernels}
        self._cascades = (cascades or CascadeSettings()).model_dump_json()
        self._seen = 0
        self._missing: list[int] = []
        try:
            self._engine = open_engine(database) if isinstance(database, str) else database
            # a file is locked while another process begins to use it
            wait = min(START_TIMEOUT, retry_timeout)
            retry(lambda: _TABLE.create(self._engine, checkfirst=True), retry_timeout=wait)
        except sa.exc.SQLAlchemyError as error:
            if not self._exists():  # another worker may have made it in between
                raise _unusable(error) from error

    def computed_by(self, kernels: Kernels) -> None:
        """Look for figures of other kernels from now on, and write such.

        Args:
            kernels: How figures are computed.
        """
        self._scope["kernels"] = kernels

    def find(self, genotypes: Iterable[Genotype]) -> dict[Genotype, CachedResult]:
        """Records of those subnetworks that have one.

        Args:
            genotypes: In canonical form.

        Raises:
            StudyError: If the database fails.
        """
        by_key = {self._key(genotype): genotype for genotype in genotypes}
        keys = list(by_key)
        found: dict[Genotype, CachedResult] = {}

        def read() -> None:
            with self._engine.connect() as connection:
                for start in range(0, len(keys), _AT_ONCE):
                    wanted = _TABLE.c.key.in_(keys[start : start + _AT_ONCE])
                    for row in connection.execute(sa.select(_TABLE).where(wanted)):
                        found[by_key[row.key]] = _read(row)

        self._retry(read)
        return found

    def new(self) -> list[tuple[Genotype, CachedResult]]:
        """All records that any process wrote since this was last asked, but those of cascades.

        Raises:
            StudyError: If the database fails.
        """
        number = _TABLE.c.number
        mine = [_TABLE.c[name] == value for name, value in self._scope.items()]
        unread = sa.or_(number > self._seen, number.in_(self._missing))
        query = sa.select(_TABLE).where(unread, *mine).order_by(number)

        def read() -> tuple[set[int], list[sa.Row]]:  # type: ignore[type-arg]
            with self._engine.connect() as connection:
                last = connection.scalar(sa.select(sa.func.max(number))) or 0
                recent = sa.select(number).where(number > last - _OUT_OF_ORDER)
                # before the rows: what is committed between the two is read twice, never missed
                there = set(connection.scalars(recent))
                return there, list(connection.execute(query))

        there, rows = self._retry(read)
        self._seen = max(there, default=0)
        first = max(1, self._seen - _OUT_OF_ORDER + 1)
        self._missing = [place for place in range(first, self._seen) if place not in there]
        found = [(_genotype(row.genotype), _read(row)) for row in rows]
        return [(genotype, result) for genotype, result in found if genotype.first is None]

    def keep(self, results: Mapping[Genotype, CachedResult]) -> None:
        """Write records; figures that a subnetwork has already stay beside the new ones.

        Args:
            results: By subnetwork.

        Raises:
            StudyError: If the database fails.
        """
        rows = [self._row(genotype, record) for genotype, record in results.items()]
        if not rows:
            return

        def write() -> None:
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(_TABLE), rows)
            except sa.exc.IntegrityError:  # some are there: from another worker, or other metrics
                for genotype, record in results.items():
                    self._merge(genotype, record)

        self._retry(write)

    def _retry(self, call: Callable[[], T]) -> T:
        """Use the database, and wait for it while it cannot be reached."""
        try:
            return retry(call, retry_timeout=self._retry_timeout)
        except sa.exc.SQLAlchemyError as error:
            raise _unusable(error) from error

    def _merge(self, genotype: Genotype, record: CachedResult) -> None:
        known = self.find([genotype]).get(genotype)
        if known is not None:
            record = CachedResult(
                {**known.figures, **record.figures},
                {**known.outcomes, **record.outcomes},
                record.failed,
                _joined(known.curve, record.curve),
            )
        row = self._row(genotype, record)
        try:
            with self._engine.begin() as connection:
                if known is None:
                    connection.execute(sa.insert(_TABLE), row)
                else:
                    connection.execute(
                        sa.update(_TABLE).where(_TABLE.c.key == row["key"]).values(**row)
                    )
        except sa.exc.IntegrityError:  # another worker was faster
            self._merge(genotype, record)

    def _row(self, genotype: Genotype, record: CachedResult) -> dict[str, object]:
        held: dict[str, object] = {
            "figures": record.figures,
            "outcomes": {name: len(right) for name, right in record.outcomes.items()},
        }
        packed = [_packed(right) for right in record.outcomes.values()]
        if record.curve is not None:
            values = {"": record.curve.ranks} | {
                f"{head} {name}": _values(said)
                for head, results in (("first", record.curve.first), ("both", record.curve.both))
                for name, said in results.items()
            }
            held["curve"] = {
                name: [len(value), value.dtype == torch.bool] for name, value in values.items()
            }
            packed += [_packed(value) for value in values.values()]
        return {
            **self._scope,
            "key": self._key(genotype),
            "genotype": _text(genotype),
            "figures": json.dumps(held),
            "outcomes": b"".join(packed),
            "failed": record.failed,
        }

    def _key(self, genotype: Genotype) -> str:
        cascades = [] if genotype.first is None else [self._cascades]
        text = json.dumps([*self._scope.values(), _text(genotype), *cascades])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _exists(self) -> bool:
        try:
            return sa.inspect(self._engine).has_table(_TABLE.name)
        except sa.exc.SQLAlchemyError:
            return False


def _text(genotype: Genotype) -> str:
    return " ".join([genotype.output, *map(str, sorted(genotype.on))])


def _genotype(text: str) -> Genotype:
    words = text.split()
    on = [int(word) for word in words if word.isdecimal()]
    output = " ".join(word for word in words if not word.isdecimal())
    return Genotype(output, frozenset(on))


def _read(row: sa.Row) -> CachedResult:  # type: ignore[type-arg]
    held = json.loads(row.figures)
    outcomes: dict[str, Tensor] = {}
    start = 0
    for name, count in held["outcomes"].items():
        outcomes[name], start = _unpacked(row.outcomes, start, count, is_bool=True)
    if "curve" not in held:
        return CachedResult(held["figures"], outcomes, row.failed)
    ranks = torch.empty(0)
    heads: dict[str, dict[str, MixableResult]] = {"first": {}, "both": {}}
    for name, (count, is_bool) in held["curve"].items():
        value, start = _unpacked(row.outcomes, start, count, is_bool=is_bool)
        head, _, metric = name.partition(" ")
        if head:
            heads[head][metric] = Hits(value) if is_bool else Scores(value)
        else:
            ranks = value
    return CachedResult(held["figures"], outcomes, row.failed, Curve(ranks, **heads))


def _values(said: MixableResult) -> Tensor:
    """What is written of every image; see `cacheable`."""
    assert isinstance(said, Hits | Scores), type(said)
    return said.right if isinstance(said, Hits) else said.values


def cacheable(curve: Curve) -> bool:
    """Whether a curve is small enough to be remembered: a number per image and metric.

    Args:
        curve: Of a cascade.
    """
    return all(isinstance(said, Hits | Scores) for said in curve.first.values())


def _joined(known: Curve | None, new: Curve | None) -> Curve | None:
    """What is known of a cascade by some metrics, and by others."""
    if known is None or new is None:
        return new or known
    return Curve(new.ranks, {**known.first, **new.first}, {**known.both, **new.both})


def _packed(value: Tensor) -> bytes:
    """Bits of booleans, 64 bits of numbers."""
    if value.dtype == torch.bool:
        return np.packbits(value.numpy()).tobytes()
    return value.double().numpy().tobytes()


def _unpacked(held: bytes, start: int, count: int, *, is_bool: bool) -> tuple[Tensor, int]:
    """What `_packed` made, and where it ends."""
    if is_bool:
        packed = np.frombuffer(held, np.uint8, (count + 7) // 8, start)
        bits = np.unpackbits(packed, count=count).astype(bool)
        return torch.from_numpy(bits), start + packed.nbytes
    numbers = np.frombuffer(held, np.float64, count, start)
    return torch.from_numpy(numbers.copy()), start + numbers.nbytes


def _unusable(error: Exception) -> StudyError:
    return StudyError(
        f"The records of evaluations cannot be read or written: {first_line(error)}. Check that "
        "the database runs and that its disk has room; nothing finished is lost."
    )
