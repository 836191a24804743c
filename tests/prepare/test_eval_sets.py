"""Evaluation sets from the command line: published files arrive checked, tasks are made of held-out text."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import close_session

from prepare import eval_sets
from prepare.common.cli import ArgumentError, UserError
from prepare.pipeline.continuation import make_tasks
from prepare.sources import published
from prepare.sources.plays import HELD_OUT, read_play
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import mistake, run_command
from tests.helpers.documents import shard_of
from tests.helpers.loopback_hub import LoopbackHub

SCRIPT = "prepare/eval_sets.py"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A server of what is in `served`, used by this process."""
    (tmp_path / "served").mkdir()
    with LoopbackHub(tmp_path / "served") as server:
        server.adopt(monkeypatch, tmp_path)
        yield server
    close_session()


def test_lambada_is_downloaded_once_and_checked(
    hub: LoopbackHub, tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lambada = replace(published.LAMBADA, url=f"{hub.endpoint}/lambada_test.jsonl")
    monkeypatch.setitem(eval_sets.KNOWN, "lambada", lambada)
    shutil.copy(real_data / "lambada_test.jsonl", hub.folder)
    for _ in range(2):
        eval_sets.main(["lambada", "--out", str(tmp_path / "out")])
        assert "lambada_test.jsonl: 5,153 lines" in capsys.readouterr().out
    assert len(hub.requests) == 1
    assert (tmp_path / "out/lambada_test.jsonl").read_bytes() == (real_data / "lambada_test.jsonl").read_bytes()


def test_another_file_than_the_published_one_is_refused(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prepare.sources.hub.WAITS", ())
    monkeypatch.setitem(eval_sets.KNOWN, "hellaswag", replace(published.HELLASWAG, url=f"{hub.endpoint}/h.jsonl"))
    (hub.folder / "h.jsonl").write_text('{"ind": 0}\n')
    with pytest.raises(UserError, match=published.HELLASWAG.sha256):
        eval_sets.main(["hellaswag", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_wikitext_is_put_together_from_the_hub_s_rows(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = " \n = Title = \n \n Some words . \n"
    lines = ["" if line == " \n" else line for line in text.splitlines(keepends=True)]
    for name in ("wikitext-2-v1", "wikitext-103-v1"):
        folder = tmp_path / "served/datasets/Salesforce/wikitext" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": lines}), folder / "test-00000-of-00001.parquet")
    hub.commit = lambda _repo: published.WIKITEXT2.revision
    for _ in range(2):
        eval_sets.main(["wikitext2", "wikitext103", "--out", str(tmp_path / "out")])
        assert capsys.readouterr().out.count("_test.tokens: 4 lines") == 2
    assert len(hub.ranges(".parquet")) == 2
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "wikitext2_test.tokens": text,
        "wikitext103_test.tokens": text,
    }


def test_without_a_network(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prepare.sources.hub.WAITS", ())
    hub.stop()
    remedy = f"copy the file from a machine with a network to {tmp_path}/out/hellaswag_val.jsonl"
    with pytest.raises(UserError, match=rf"cannot get https://raw.githubusercontent.com/.*{remedy}"):
        eval_sets.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match=r"wikitext5.*continuation"):
        eval_sets.main(["wikitext5"])


def test_tasks_from_held_out_text(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "data", [read_play(HELD_OUT[0])], GPT2Tokenizer())
    out = tmp_path / "tasks.jsonl"
    command = ("python", SCRIPT, "continuation", "--shards", tmp_path / "data/*_val_*.bin", "--out", out)
    result = run_command(*command, "--tasks", 150, "--seed", 3)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == make_tasks([shard], 150, 3)
    words = command[2:-1]
    assert "999999 tasks need 999999" in mistake(eval_sets.main, *words, tmp_path / "many.jsonl", "--tasks=999999")[1]
    for file in (tmp_path, out / "x.jsonl"):
        status, error = mistake(eval_sets.main, *words, file)
        assert (status, "a folder" in error) == (2, True), error
    assert "no token shards match" in mistake(eval_sets.main, *words[:2], tmp_path / "absent*", *words[3:], out)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tasks.jsonl"]
