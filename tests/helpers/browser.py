"""A headless browser: Debian's chromium, driven by Playwright, which reports whatever a page should not do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start chromium; as root it has no sandbox."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, file: Path, **context: Any) -> Iterator[Page]:
    """Open a file in a fresh context (viewport, color_scheme ...), once its views are drawn. AssertionError at the end
    if it wrote to the console, raised an error, or requested anything but itself and data: URLs."""
    problems: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        problems.append(f"console {message.type}: {message.text}")

    def note_request(url: str) -> None:
        if not url.startswith(("data:", file.as_uri())):
            problems.append(f"request: {url}")

    opened = browser.new_context(**context)
    opened.set_default_timeout(10_000)
    page = opened.new_page()
    page.on("console", note_message)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda request: note_request(request.url))
    page.goto(file.as_uri())
    page.locator("html[data-ready]").wait_for(timeout=30_000)
    yield page
    opened.close()
    assert not problems
