"""Serve a study in optuna-dashboard."""

from __future__ import annotations

from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

import optuna
import optuna_dashboard
from optuna_dashboard._serializer import serialize_frozen_trial

from optuna_stitch.utils.machine import check_address

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore


def serve_dashboard(
    storage: optuna.storages.BaseStorage,
    *,
    artifact_store: ArtifactStore | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> None:
    """Serve optuna-dashboard until interrupted.

    Args:
        storage: With the studies to show.
        artifact_store: Where `publish` put the drawings of the front's networks.
        host: Address to listen on; only this machine can reach the default.
        port: Port to listen on.

    Raises:
        StudyError: If the address cannot be listened on.
    """
    check_address("The dashboard", host, port)
    app = dashboard_app(storage, artifact_store)
    app.run(host=host, port=port, quiet=True, server_class=ThreadingServer)


def dashboard_app(
    storage: optuna.storages.BaseStorage, artifact_store: ArtifactStore | None = None
) -> Any:
    """The dashboard as an application of Bottle's, which any WSGI server runs.

    Args:
        storage: With the studies to show.
        artifact_store: With their artifacts.
    """
    app = optuna_dashboard.wsgi(storage, artifact_store=artifact_store)
    app.install(_Amended(storage))
    return app


class ThreadingServer(ThreadingMixIn, WSGIServer):
    """Answers connections side by side: browsers open some that they do not use at once."""

    daemon_threads = True


class _Amended:
    """A plugin of Bottle's which amends what the dashboard says of a study.

    The dashboard finds the best trials without a look at their constraints, lists all of their
    parameters, of which a stitched network has many that are off, and has figures in no order.
    """

    name = "optuna_stitch"
    api = 2

    def __init__(self, storage: optuna.storages.BaseStorage) -> None:
        self.storage = storage

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Wrap the one answer that has all of this."""
        if (route.method, route.rule) != ("GET", "/api/studies/<study_id:int>"):
            return callback

        def detail(study_id: int) -> Any:
            answer = callback(study_id=study_id)
            if "best_trials" in answer:  # else it is an error
                self._amend(study_id, answer)
            return answer

        return detail

    def _amend(self, study_id: int, answer: dict[str, Any]) -> None:
        answer["plotly_graph_objects"].sort(key=lambda figure: figure["id"])
        # where all of a front are feasible, it is the front of the feasible ones
        if any(max(best["constraints"], default=0) > 0 for best in answer["best_trials"]):
            answer["best_trials"] = self._best_feasible(study_id)
        for best in answer["best_trials"]:
            best["params"] = [p for p in best["params"] if p["param_external_value"] != "off"]

    def _best_feasible(self, study_id: int) -> list[dict[str, Any]]:
        name = self.storage.get_study_name_from_id(study_id)
        study = optuna.load_study(study_name=name, storage=self.storage)
        attrs = self.storage.get_study_system_attrs(study_id)
        return [
            serialize_frozen_trial(study_id, trial, attrs)
            # of one objective the dashboard shows one trial
            for trial in (
                study.best_trials if len(study.directions) > 1 else study.best_trials[:1]
            )
        ]
