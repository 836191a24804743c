"""Published files are recognized by their hashes and go to their places."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from prepare.common.cli import DATA
from prepare.sources.published import HELLASWAG, LAMBADA, PublishedFile
from tests.helpers.loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    (tmp_path / "served").mkdir()
    with LoopbackHub(tmp_path / "served") as server:
        server.adopt(monkeypatch, tmp_path)
        yield server
    close_session()


def test_a_git_blob_is_fetched_once(hub: LoopbackHub, tmp_path: Path) -> None:
    served = hub.folder / "tasks.jsonl"
    served.write_text('{"ind": 0}\n')
    blob = subprocess.run(["git", "hash-object", served], capture_output=True, text=True, check=True).stdout.strip()
    known = PublishedFile(tmp_path / "place/tasks.jsonl", f"{hub.endpoint}/tasks.jsonl", git_blob=blob)
    for _ in range(2):
        assert known.fetch() == tmp_path / "place/tasks.jsonl"
        assert known.path.read_text() == '{"ind": 0}\n'
        assert len(hub.requests) == 1
    assert known.fetch(tmp_path / "other") == tmp_path / "other/tasks.jsonl"


def test_lambada_in_place_needs_no_network(hub: LoopbackHub, tmp_path: Path, real_data: Path) -> None:
    shutil.copy(real_data / "lambada_test.jsonl", tmp_path)
    hub.stop()
    assert LAMBADA.fetch(tmp_path) == tmp_path / "lambada_test.jsonl"


def test_default_places() -> None:
    assert HELLASWAG.path == DATA / "hellaswag_val.jsonl"
    assert LAMBADA.path == DATA / "lambada_test.jsonl"
