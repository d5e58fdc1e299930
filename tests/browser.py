"""A headless Chromium for tests of the report: pages opened from disk, all complaints kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HOME = Path(os.environ.get("BROWSER_HOME", ".browser"))
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def why_not() -> str:
    """What these tests lack on this machine, "" where they can run."""
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "needs playwright: make test-browser installs it"
    return "" if _executable() else "needs Chromium (Debian's package chromium)"


def _executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def axe_source() -> str:
    """The text of axe-core; skips where make test-browser has not put it."""
    path = HOME / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip(f"needs {path}: make test-browser installs it")
    return path.read_text(encoding="utf-8")


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_executable(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """A report opened in a window of its own. complaints: console errors, exceptions, dialogs."""

    def __init__(self, browser: Any, report: Path, *, width: int = 1280, scheme: str = "light"):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        self.tab.set_default_timeout(120_000)  # a busy machine is slow, not wrong
        self.tab.on("console", self._heard)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(report.resolve().as_uri())

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open_viewer(self) -> None:
        """Scroll to the token viewer and wait until it is ready."""
        self.tab.evaluate("document.querySelector('#viewer').scrollIntoView()")
        self.tab.wait_for_selector("#tv-root[data-ready]")

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until the element holds the text."""
        holds = "([s, t]) => document.querySelector(s).textContent.includes(t)"
        self.until(holds, [selector, text])

    def until(self, script: str, given: Any = None, seconds: float = 120.0) -> None:
        """Wait until the script is true. Asked from outside: the page's policy forbids eval."""
        deadline = time.monotonic() + seconds
        while not self.tab.evaluate(script, given):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {script}, {given}"
            self.tab.wait_for_timeout(50)

    def texts(self, selector: str) -> list[str]:
        return self.tab.eval_on_selector_all(selector, "all => all.map((n) => n.textContent)")

    def serious(self, source: str) -> list[str]:
        """The findings of axe-core of impact serious or critical."""
        self.tab.evaluate(source)
        found = self.tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{v['id']}: {node['target']} {node['failureSummary']}"
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"][:3]
        ]

    def overflows(self) -> int:
        """How many pixels the page is wider than its window."""
        return self.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
