"""A real Chromium, without a window and without a network, that opens the page of a report from a file.

Without playwright or Chromium the tier is left out; where FAIL_WITHOUT_BROWSER is 1, it fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nsfw_spark.review.page import write_page
from nsfw_spark.review.report import Report

if TYPE_CHECKING:  # this file is read by plain `pytest` too, where playwright may be absent
    from playwright.sync_api import Browser, Page

ARGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
OpenPage = Callable[..., "Page"]

if importlib.util.find_spec("playwright") is None and os.environ.get("FAIL_WITHOUT_BROWSER") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[OpenPage]:
    """Open a report's page; fail if it writes to the console, asks for an address, or runs foreign code."""
    contexts, told, asked, tabs = [], [], [], []

    def open_(report: Report | Path, **options: Any) -> Page:  # noqa: ANN401 - of new_context
        path = report if isinstance(report, Path) else tmp_path / "review.html"
        if isinstance(report, Report):
            write_page(report, path)
        context = browser.new_context(reduced_motion="reduce", accept_downloads=True, **options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        tab = context.new_page()
        tab.set_default_timeout(15_000)
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.goto(path.as_uri())
        tabs.append(tab)
        return tab

    yield open_
    hacked = [tab.evaluate("typeof window.__hacked") for tab in tabs]
    for context in contexts:
        context.close()
    assert told == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:null/", "blob:file:"))] == []
    assert set(hacked) <= {"undefined"}
