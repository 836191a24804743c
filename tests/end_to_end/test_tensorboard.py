"""A real TensorBoard, over its HTTP API and in a real browser, while one run trains and another is finished."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import open_browser
from tests.helpers.commands import FAULTS, ROOT, free_port, run_command, start_command
from tests.helpers.event_files import assert_events_equal_metrics, expected_points
from tests.helpers.tiny import rows, settings, write_shards

SCRIPT = ROOT / "train" / "train_gpt2.py"
CHANGES = {"log__tensorboard": "true", "eval__every": 10, "checkpoint__every": 5}


def tokens_read(step: int) -> int:
    return 512 * step


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of `tensorboard --logdir RUNS`, which reads every second."""
    port, logdir = free_port(), tmp_path / "runs"
    words = ["--logdir", logdir, "--host", "127.0.0.1", "--port", port, "--reload_interval", 1]
    with start_command("python", "-m", "tensorboard.main", *words, fresh=True) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.5)


def shown(server: str, run: str, tag: str) -> list[tuple[int, float]]:
    """The steps and the values of a scalar, as TensorBoard's page gets them."""
    query = urlencode({"run": run, "tag": tag})
    try:
        with urllib.request.urlopen(f"{server}/data/plugin/scalars/scalars?{query}") as answer:
            return [(step, value) for _, step, value in json.load(answer)]
    except OSError:  # it does not listen yet, or does not know the run
        return []


@pytest.mark.slow
def test_tensorboard_shows_a_finished_run_and_one_that_trains_is_killed_and_resumed(
    tmp_path: Path, server: str
) -> None:
    data, one, two = write_shards(tmp_path / "data"), tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    assert run_command("python", SCRIPT, *settings(data, one, **CHANGES)).returncode == 0
    words = settings(data, two, **CHANGES, optim__max_lr=5e-3)
    with open_browser() as browser, start_command("python", FAULTS, "hang@13:0", SCRIPT, *words) as training:
        wait_for(lambda: len(shown(server, "two", "train/loss")) == 12)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{server}/#timeseries")
        for text in ("one", "two", "train/loss"):
            expect(page.get_by_text(text, exact=True).first).to_be_visible(timeout=60_000)
        training.kill()
    [events] = two.glob("*tfevents*")
    events.write_bytes(events.read_bytes()[:-30])  # in the middle of a record
    assert run_command("python", SCRIPT, *words).returncode == 0

    for run in (one, two):
        assert_events_equal_metrics(run, tokens_read)
        assert [row["step"] for row in rows(run, "train")] == list(range(1, 21))
        expected: dict[str, list[tuple[int, float]]] = {}
        for tag, step, value in expected_points(run, tokens_read):
            if not isinstance(value, str):
                expected.setdefault(tag, []).append((step, value))
        assert {"train/loss", "val/loss", "vs_tokens/val/loss"} <= expected.keys()
        for tag, points in expected.items():
            wait_for(lambda run=run, tag=tag, points=points: shown(server, run.name, tag) == points)
