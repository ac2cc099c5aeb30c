"""A study that was searched and reported on, in any storage, and what the dashboard says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import plotly.graph_objects as go

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.report.dashboard import FinishedTrial, publish
from optuna_stitch.report.dashboard_server import dashboard_app
from optuna_stitch.report.entries import Entry
from optuna_stitch.report.front import Front
from optuna_stitch.storage.artifacts import open_artifact_store
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import open_storage

SUMMARY = "Trial 7 needs 31% fewer multiply-accumulates than parent_b."


def two_on_front(study: optuna.Study, objective: st.Objective, split: Split) -> Front:
    """Three stitched networks of a study, two of them on a front with the parents."""
    stitched = [t.number for t in study.trials if objective.key(t.params).on]
    front = st.evaluate_front(study, objective, split, only=[0, 1, 2, *stitched[:3]])
    assert len(front.stitched) == 3
    for entry in front.entries:
        entry.on_front = entry in front.stitched[:2] or entry.kind == "parent"
        entry.on_fixed_front = entry.on_front and not entry.is_cascade
    return front


def answer(app: Any, path: str) -> tuple[str, bytes]:
    """What a WSGI application answers: a type and a body."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = path
    heads: dict[str, str] = {}

    def start(status: str, headers: list[tuple[str, str]], *_: object) -> None:
        heads.update(headers)
        assert status.startswith("200"), status

    body = b"".join(app(environ, start))
    return heads["Content-Type"], body


def told(study: optuna.Study, store: Any = None) -> dict[str, Any]:
    """What the dashboard's pages are told of a study."""
    app = dashboard_app(study._storage, store)
    found: dict[str, Any] = json.loads(answer(app, f"/api/studies/{study._study_id}")[1])
    return found


class Published:
    """A study with a front of two stitched networks in a storage of its own."""

    def __init__(self, searched: optuna.Study, front: Front, folder: Path) -> None:
        self.searched = searched
        self.front = front
        self.folder = folder
        self.store = open_artifact_store(str(folder / "artifacts"))

    def into(self, kind: str) -> Published:
        """Copy the study into a new storage."""
        storage = (
            BufferedStorage(optuna.storages.InMemoryStorage())
            if kind == "memory"
            else open_storage(f"{kind}:///{self.folder}/study")
        )
        self.study = optuna.create_study(
            study_name="digits", storage=storage, directions=self.searched.directions
        )
        self.study.add_trials(self.searched.get_trials(deepcopy=False))
        return self

    def publish(
        self, front: Front | None = None, figures: Mapping[str, go.Figure] | None = None
    ) -> list[str]:
        return publish(
            self.study,
            front or self.front,
            self.store,
            figures=figures or {},
            summary=SUMMARY,
            command="optuna-stitch export runs/digits --trial {trial}",
        )

    @property
    def on_front(self) -> list[Entry]:
        return [entry for entry in self.front.stitched if entry.on_front]

    def trial(self, entry: Entry) -> FinishedTrial:
        assert entry.trial is not None
        return FinishedTrial.numbered(self.study, entry.trial)

    def get(self, path: str) -> tuple[str, bytes]:
        return answer(dashboard_app(self.study._storage, self.store), path)

    def shown(self) -> dict[str, Any]:
        return told(self.study, self.store)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "artifacts").iterdir()}
