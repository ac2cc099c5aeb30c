from __future__ import annotations

import runpy
import socket
import threading
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
import torch

from optuna_stitch.report.dashboard_server import serve_dashboard
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.errors import StudyError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_program_gives_a_plain_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "studies" / "digits.py"))
    assert "M MACs" in capsys.readouterr().out
    study, network, data = names["study"], names["network"], names["data"]
    assert len(study.trials) == 100
    images = next(data.val.batches(names["supernetwork"].views, len(data.val))).images
    with torch.no_grad():
        hits = network(*images).argmax(1) == data.val.targets
    # the study judges a cascade on images that did not tune it, and here they did
    assert float(hits.float().mean()) == pytest.approx(names["best"].values[0], abs=0.03)
    # both parents learn, so that there is something to stitch
    assert all(trial.values[0] > 0.9 for trial in study.trials[:2])
    assert optuna.load_study(study_name=study.study_name, storage="sqlite:///digits.db").trials


def test_the_dashboard_serves_the_study(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(storage=storage, study_name="shown")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"storage": storage, "port": port}
    server = threading.Thread(target=serve_dashboard, kwargs=options, daemon=True)
    server.start()
    address, deadline = f"http://127.0.0.1:{port}/api/studies", time.monotonic() + 240
    while True:
        try:
            answer = urllib.request.urlopen(address, timeout=5).read().decode()
            break
        except OSError:
            assert server.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "shown" in answer
    with pytest.raises(StudyError, match="choose another `--port`"):
        serve_dashboard(storage, port=port)
