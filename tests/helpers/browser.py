"""A real browser for tests: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Kept to be looked at; the folder is no part of the repository.
SCREENSHOTS = Path("runs/screenshots")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser, or skip the test with what is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("Playwright is missing, which `uv sync` installs")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    # without a sandbox it starts as root and in containers too; the pages are our own
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


class Tab:
    """A page, and what went wrong on it.

    Args:
        browser: What opens it.
        scheme: What the user prefers, ``light`` or ``dark``.
    """

    def __init__(self, browser: Browser, scheme: Any) -> None:
        self.scheme = scheme
        self.page: Page = browser.new_page(
            color_scheme=scheme, viewport={"width": 1400, "height": 1000}
        )
        self.page.set_default_timeout(120_000)  # on a machine that is busy with others
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("response", self._answered)

    def open(self, address: str, text: str) -> None:
        """Go to an address, and wait until a text can be seen."""
        self.page.goto(address)
        self.see(text)

    def see(self, text: str) -> Locator:
        """Wait until a text can be seen."""
        found = self.page.get_by_text(text).first
        found.wait_for(state="visible")
        return found

    def shoot(self, name: str) -> Path:
        """Keep a screenshot of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{self.scheme}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.errors.append(f"{response.status} {response.url}")
