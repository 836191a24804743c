"""A folder of shards in the making, as processes claim, complete and leave it; test_tokenize_job.py fills it."""

import json
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from prepare.common.cli import UserError
from prepare.pipeline.output_folder import OutputFolder, pinned_revision

PLAN = {
    "dataset": "a",
    "revision": None,
    "tokenizer": {"name": "gpt2", "vocab_size": 50257, "sha256": "0"},
    "options": {},
    "inputs": [{"name": "x"}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_folder_of_another_dataset_has_no_revision_to_keep(path: Path) -> None:
    (path / ".progress").mkdir()
    (path / ".progress/plan.json").write_text(json.dumps({"dataset": "a", "revision": "0123"}))
    assert pinned_revision(path, "a") == "0123"
    assert pinned_revision(path, "b") is None


def test_a_folder_is_not_removed_while_another_process_claims_it(path: Path) -> None:
    first, second = OutputFolder(path, PLAN), OutputFolder(path, PLAN)
    with first.claim(1, 1):
        with second._exclusive():
            leaving = threading.Thread(target=first.keep_only_finished)
            leaving.start()
            leaving.join(0.3)
            assert second._plan_path.is_file()
        leaving.join()
        assert not path.exists()
        with second.claim(1, 1):  # made again
            assert second._plan_path.is_file()


def test_a_folder_that_is_removed_while_it_is_claimed_is_made_again(path: Path, monkeypatch) -> None:
    first, second, unlink = OutputFolder(path, PLAN), OutputFolder(path, PLAN), os.unlink
    claimed: list[Path] = []
    with ExitStack() as held:

        def unlink_and_claim(name: Path, **options: object) -> None:
            unlink(name, **options)
            if Path(name).name == "lock" and not claimed:
                claimed.append(Path(name))
                held.enter_context(second.claim(1, 1))

        with first.claim(1, 1):
            monkeypatch.setattr(os, "unlink", unlink_and_claim)
            first.keep_only_finished()
        assert claimed
        assert {file.name for file in second.progress.iterdir()} == {"lock", "plan.json", "task-1-of-1.lock"}


def test_a_second_process_is_refused_with_the_id_of_the_first(path: Path) -> None:
    with OutputFolder(path, PLAN).claim(1, 1):
        for task, count in ((1, 1), (1, 2)):
            with pytest.raises(UserError, match=f"process {os.getpid()} on "):
                OutputFolder(path, PLAN).claim(task, count).__enter__()
    with OutputFolder(path, PLAN).claim(1, 2):  # the folder is unfinished
        assert pinned_revision(path, "a") is None
    with pytest.raises(UserError, match="dataset a, not b"):
        OutputFolder(path, PLAN | {"dataset": "b"}).claim(1, 1).__enter__()
