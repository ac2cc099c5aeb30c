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

from optuna_stitch.evaluation.settings import Kernels
from optuna_stitch.stitching.genotype import OUTPUTS, Genotype
from optuna_stitch.storage.rdb import open_engine
from optuna_stitch.storage.retry import RETRY_TIMEOUT, retry
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


@dataclass(frozen=True)
class CachedResult:
    """What a full evaluation of one subnetwork found.

    Args:
        figures: By the metrics' recorded names.
        outcomes: Right or wrong by image, ``(N,)`` bool, in the split's order; by metric.
        failed: The operation that made the first value that is no number, or nothing.
    """

    figures: dict[str, float]
    outcomes: dict[str, Tensor]
    failed: str = ""


class ResultCache:
    """The records of one supernetwork on one split.

    Args:
        database: URL or engine of a database; the table is made where there is none.
        supernetwork: `Supernetwork.content_hash`.
        split: `Split.fingerprint`.
        kernels: How figures are computed.
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
        retry_timeout: float = RETRY_TIMEOUT,
    ) -> None:
        self._retry_timeout = retry_timeout
        self._scope = {"supernetwork": supernetwork, "split": split, "kernels": kernels}
        self._seen = 0
        try:
            self._engine = open_engine(database) if isinstance(database, str) else database
            _TABLE.create(self._engine, checkfirst=True)
        except sa.exc.SQLAlchemyError as error:
            if not self._exists():  # another worker may have made it in between
                raise _unusable(error) from error

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
        """All records that any process wrote since this was last asked.

        Raises:
            StudyError: If the database fails.
        """
        mine = [_TABLE.c[name] == value for name, value in self._scope.items()]
        query = sa.select(_TABLE).where(_TABLE.c.number > self._seen, *mine)

        def read() -> list[sa.Row]:  # type: ignore[type-arg]
            with self._engine.connect() as connection:
                return list(connection.execute(query.order_by(_TABLE.c.number)))

        rows = self._retry(read)
        self._seen = rows[-1].number if rows else self._seen
        return [(_genotype(row.genotype), _read(row)) for row in rows]

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
        lengths = {name: len(outcomes) for name, outcomes in record.outcomes.items()}
        packed = [np.packbits(outcomes.numpy()).tobytes() for outcomes in record.outcomes.values()]
        return {
            **self._scope,
            "key": self._key(genotype),
            "genotype": _text(genotype),
            "figures": json.dumps({"figures": record.figures, "outcomes": lengths}),
            "outcomes": b"".join(packed),
            "failed": record.failed,
        }

    def _key(self, genotype: Genotype) -> str:
        text = json.dumps([*self._scope.values(), _text(genotype)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _exists(self) -> bool:
        try:
            return sa.inspect(self._engine).has_table(_TABLE.name)
        except sa.exc.SQLAlchemyError:
            return False


def _text(genotype: Genotype) -> str:
    return " ".join([genotype.output, *map(str, sorted(genotype.on))])


def _genotype(text: str) -> Genotype:
    output, *on = text.split()
    return Genotype(OUTPUTS[OUTPUTS.index(output)], frozenset(map(int, on)))


def _read(row: sa.Row) -> CachedResult:  # type: ignore[type-arg]
    held = json.loads(row.figures)
    outcomes: dict[str, Tensor] = {}
    start = 0
    for name, count in held["outcomes"].items():
        packed = np.frombuffer(row.outcomes, np.uint8, (count + 7) // 8, start)
        outcomes[name] = torch.from_numpy(np.unpackbits(packed, count=count).astype(bool))
        start += len(packed)
    return CachedResult(held["figures"], outcomes, row.failed)


def _unusable(error: Exception) -> StudyError:
    return StudyError(
        f"The records of evaluations cannot be read or written: {first_line(error)}. Check that "
        "the database runs and that its disk has room; nothing finished is lost."
    )
