"""A folder of shards in the making; how it comes about is tested by test_pipeline.py."""

import json
from pathlib import Path

import numpy as np

from prepare.folder import Folder, kept_revision
from prepare.shards import write_shard


def test_a_shard_that_has_grown_is_not_whole(tmp_path: Path) -> None:
    record = write_shard(tmp_path / "x_train_000001.bin", np.arange(5))
    folder = Folder(tmp_path, {"inputs": []})
    assert folder._whole([record])
    with (tmp_path / "x_train_000001.bin").open("ab") as file:
        file.write(bytes(2))  # a token more
    assert not folder._whole([record])


def test_a_folder_of_another_dataset_has_no_revision_to_keep(tmp_path: Path) -> None:
    (tmp_path / ".progress").mkdir()
    (tmp_path / ".progress/plan.json").write_text(json.dumps({"dataset": "a", "revision": "0123"}))
    assert kept_revision(tmp_path, "a") == "0123"
    assert kept_revision(tmp_path, "b") is None
