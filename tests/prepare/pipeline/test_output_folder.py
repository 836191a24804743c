"""A folder of shards in the making; how it comes about is tested by test_pipeline.py."""

import json
import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from prepare.pipeline.output_folder import Folder, pinned_revision
from prepare.tokens.shards import write_shard


def test_a_shard_that_has_grown_is_not_whole(tmp_path: Path) -> None:
    record = write_shard(tmp_path / "x_train_000001.bin", np.arange(5))
    folder = Folder(tmp_path, {"inputs": []})
    assert folder._whole([record])
    with (tmp_path / "x_train_000001.bin").open("ab") as file:
        file.write(bytes(2))  # a token more
    assert not folder._whole([record])


def test_a_folder_is_cleaned_without_a_search_for_each_of_its_files(tmp_path: Path) -> None:
    class Listed(list):
        def __contains__(self, number: object) -> bool:
            raise AssertionError(f"{number} is searched in a list, as long as there are input files")

    folder = Folder(tmp_path, {"inputs": [{}] * 3})
    for number in range(3):
        write_shard(tmp_path / f"x_train_{number:03d}000.bin", np.arange(5))
    folder.clean(Listed([0, 2]))
    assert [path.name for path in tmp_path.iterdir()] == ["x_train_001000.bin"]


def test_a_folder_of_another_dataset_has_no_revision_to_keep(tmp_path: Path) -> None:
    (tmp_path / ".progress").mkdir()
    (tmp_path / ".progress/plan.json").write_text(json.dumps({"dataset": "a", "revision": "0123"}))
    assert pinned_revision(tmp_path, "a") == "0123"
    assert pinned_revision(tmp_path, "b") is None


def plan() -> dict:
    """That of a job with one input, none of which is there yet."""
    return {"dataset": "a", "revision": None, "tokenizer": {}, "options": {}, "inputs": [{"name": "x"}]}


def test_a_folder_that_another_process_abandons_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    first, second = Folder(path, plan()), Folder(path, plan())
    with first.claimed(1, 1):
        first.abandon()
        assert not path.exists()
        with second.claimed(1, 1):
            assert pinned_revision(path, "a") is None
            assert second._plan_path.is_file()


def test_a_folder_that_is_abandoned_between_any_two_steps_is_made_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "out"
    path.mkdir()
    make, left = Path.mkdir, ["out", ".progress"]

    def made_and_gone(folder: Path, *more: object, **options: object) -> None:
        make(folder, *more, **options)
        if folder.name in left:
            left.remove(folder.name)
            shutil.rmtree(path)

    monkeypatch.setattr(Path, "mkdir", made_and_gone)
    with Folder(path, plan()).claimed(1, 1):
        assert (path / ".progress/plan.json").is_file()
    assert not left


def test_who_abandons_a_folder_waits_for_those_who_are_beginning_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    first, second = Folder(path, plan()), Folder(path, plan())
    with first.claimed(1, 1):
        with second._alone():
            leaving = threading.Thread(target=first.abandon)
            leaving.start()
            leaving.join(0.3)
            assert second._plan_path.is_file()
        leaving.join()
    assert not path.exists()


def test_who_comes_to_a_folder_as_another_abandons_it_keeps_what_it_begins(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "out"
    path.mkdir()
    first, second, remove = Folder(path, plan()), Folder(path, plan()), os.unlink
    with ExitStack() as held:

        def removed(name: Path | str, **options: object) -> None:
            remove(name, **options)
            if Path(name).name == "lock" and not came:
                came.append(name)
                held.enter_context(second.claimed(1, 1))

        came: list[Path | str] = []
        with first.claimed(1, 1):
            monkeypatch.setattr(os, "unlink", removed)
            first.abandon()
        assert came
        assert {file.name for file in second.progress.iterdir()} == {"lock", "plan.json", "task-1-of-1.lock"}
