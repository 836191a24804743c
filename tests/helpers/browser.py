"""A headless browser: Debian's chromium, driven by Playwright, which reports whatever a page should not do."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

PATIENCE = 60_000  # milliseconds; a machine with other work takes tens of seconds to open a page


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start chromium; as root it has no sandbox."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, address: str, expected: str = "", **context: Any) -> Iterator[Page]:
    """Open a page in a fresh context (viewport, color_scheme ...), once it is drawn or asks for a token. AssertionError
    at the end if it, or a tab that it opened, wrote to the console (other than what the pattern `expected` matches),
    raised an error, or requested anything but the server or file that it came from, data: and blob: URLs."""
    problems: list[str] = []
    url = urlsplit(address)
    origin = f"http://{url.netloc}/" if url.netloc else address

    def note_message(message: ConsoleMessage) -> None:
        if not (expected and re.search(expected, message.text)):
            problems.append(f"console {message.type}: {message.text}")

    def note_request(url: str) -> None:
        if not url.startswith(("data:", "about:blank", "blob:", origin)):
            problems.append(f"request: {url}")

    def watch(page: Page) -> None:
        page.on("console", note_message)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: note_request(request.url))

    opened = browser.new_context(**context)
    opened.set_default_timeout(PATIENCE)
    opened.on("page", watch)
    page = opened.new_page()
    page.goto(address)
    page.locator("html[data-ready], dialog[open]").first.wait_for()
    yield page
    opened.close()
    assert not problems, problems
