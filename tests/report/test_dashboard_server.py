"""The dashboard as people see it: in a real browser, light and dark."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import optuna
import pytest

import optuna_stitch as st
from optuna_stitch.report.dashboard_server import serve_dashboard
from optuna_stitch.report.front import Front
from optuna_stitch.report.hypervolume import hypervolume_over_trials
from optuna_stitch.report.interactive import draw_front, draw_history, draw_switches
from optuna_stitch.report.plots import switch_shares
from optuna_stitch.storage.artifacts import open_artifact_store
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import open_storage, serve_proxy
from optuna_stitch.utils.errors import StudyError
from tests.helpers.browser import Tab, open_browser
from tests.helpers.published import SUMMARY, Published

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Objects of plotly's that the dashboard's Pareto plot has, by what the pointer shows of each.
PARETO = """() => document.getElementById("graph-pareto-front")?.data && Object.fromEntries(
    document.getElementById("graph-pareto-front").data.map(
    trace => [trace.hovertemplate.match(/<extra>(.*)<\\/extra>/)[1], [...trace.x]]))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def published(
    searched: tuple[optuna.Study, Front],
    supernetwork: st.Supernetwork,
    tmp_path_factory: pytest.TempPathFactory,
) -> Published:
    made = Published(*searched, tmp_path_factory.mktemp("run")).into("sqlite")
    figures = {
        "front": draw_front(made.front, "What is on the front"),
        "history": draw_history(hypervolume_over_trials(made.study)),
        "switches": draw_switches(switch_shares(made.front, supernetwork)),
    }
    made.publish(figures=figures)
    constrained = optuna.create_study(
        study_name="constrained",
        storage=made.study._storage,
        directions=["maximize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    constrained.optimize(_constrained, n_trials=20)
    return made


def _constrained(trial: optuna.Trial) -> tuple[float, float]:
    """The better the first objective, the more it breaks the constraint."""
    x = trial.suggest_float("x", 0, 1)
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [x - 0.5])
    return x, x


def _serve(folder: Path, port: int) -> None:
    store = open_artifact_store(str(folder / "artifacts"))
    serve_dashboard(open_storage(f"sqlite:///{folder}/study"), artifact_store=store, port=port)


@pytest.fixture(scope="module")
def address(browser: Browser, published: Published) -> str:
    """Where a thread serves both studies, until the session ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Thread(target=_serve, args=(published.folder, port), daemon=True)
    server.start()
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/studies", timeout=5)
            break
        except OSError:
            assert server.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return f"{address}/dashboard/studies"


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    opened = Tab(browser, request.param)
    yield opened
    opened.page.close()
    assert opened.errors == []


@pytest.mark.slow
def test_the_study_with_its_figures(tab: Tab, address: str, published: Published) -> None:
    tab.open(f"{address}/1", "Pareto Front")
    tab.page.wait_for_function(PARETO)
    for name in ("front", "history", "switches"):
        tab.page.locator(f'[id="user-defined-plot:{name}"] .main-svg').first.wait_for()
    tab.see("What is on the front")
    drawn = tab.page.locator('[id="user-defined-plot:front"]')
    assert "parent a" in (drawn.text_content() or "")
    # the card shows through, whatever its colour
    background = drawn.locator("rect.bg, .main-svg").first
    assert background.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"
    # of the best trials what is on
    card = tab.see("Best Trials").locator("xpath=../..").inner_text()
    assert "output: " in card
    assert ": off" not in card
    tab.shoot("study")


@pytest.mark.slow
def test_the_note_of_the_study(tab: Tab, address: str, published: Published) -> None:
    tab.open(f"{address}/1/note", SUMMARY)
    table = tab.page.locator("table").inner_text()
    for entry in published.front.baselines:
        assert entry.name in table
    tab.shoot("note")
    entry = published.on_front[0]
    tab.page.locator("tr", has_text=entry.name).get_by_role("link").click()
    tab.see(f"Trial {entry.trial} (trial_id=")


@pytest.mark.slow
def test_a_trial_of_the_front(tab: Tab, address: str, published: Published) -> None:
    entry = published.on_front[1]
    tab.page.set_viewport_size({"width": 1400, "height": 2600})
    tab.open(f"{address}/1/trials?numbers={entry.trial}", f"Trial {entry.trial} (trial_id=")
    tab.see(f"{100 * entry.quality:.2f}")
    tab.see("optuna-stitch")
    drawing = tab.page.get_by_alt_text(f"What {entry.name} computes of both parents")
    drawing.wait_for(state="visible")
    tab.page.wait_for_function("() => [...document.images].every(image => image.naturalWidth > 0)")
    assert drawing.evaluate("image => image.naturalWidth") > 500
    tab.shoot("trial")
    tab.see(f"trial-{entry.trial}.csv")
    tab.see(f"trial-{entry.trial}.svg")
    tab.page.get_by_label("show artifact table").click()
    tab.see("test_accuracy")
    tab.see(f"{entry.quality}"[:6])
    tab.page.set_viewport_size({"width": 1400, "height": 1000})
    tab.shoot("table of an artifact")


@pytest.mark.slow
def test_what_breaks_a_constraint_does_not_look_best(
    tab: Tab, address: str, published: Published
) -> None:
    tab.open(f"{address}/2", "Pareto Front")
    points = tab.page.wait_for_function(PARETO).json_value()
    assert points["Infeasible Trial"]
    assert min(points["Infeasible Trial"]) > 0.5
    assert points["Best Trial"]
    assert max(points["Best Trial"]) <= 0.5
    tab.see("Best Trials")
    tab.shoot("constrained")
    study = optuna.load_study(study_name="constrained", storage=published.study._storage)
    tab.page.set_viewport_size({"width": 1400, "height": 2600})
    tab.open(f"{address}/2/trials", "Best Trial")
    rows = tab.page.locator("li", has=tab.page.get_by_text("Best Trial", exact=True))
    listed = [text.split("\n")[0] for text in rows.all_inner_texts()]
    assert listed == [f"Trial {trial.number}" for trial in study.best_trials]


@pytest.mark.slow
def test_the_dashboards_own_switch_to_dark(browser: Browser, address: str) -> None:
    tab = Tab(browser, "light")
    tab.open(f"{address}/1/note", SUMMARY)
    tab.page.get_by_title("Dark Mode").get_by_role("button").click()
    colour = "e => getComputedStyle(e).color"
    tab.page.wait_for_function(
        f"({colour})(document.querySelector('table')) === 'rgb(255, 255, 255)'"
    )
    tab.shoot("switched to dark")
    tab.page.close()
    assert tab.errors == []


def test_a_port_that_is_taken_is_told() -> None:
    storage = optuna.storages.InMemoryStorage()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for serve, given in ((serve_dashboard, storage), (serve_proxy, BufferedStorage(storage))):
            for wrong in (port, 65536):
                with pytest.raises(StudyError, match=f"listen on 127.0.0.1:{wrong} .*`--port`"):
                    serve(given, port=wrong)  # type: ignore[operator]
