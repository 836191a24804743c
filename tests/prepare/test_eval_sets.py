"""Evaluation sets from the command line: published files arrive checked, tasks are made of held-out text."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prepare.pipeline.continuation import make_tasks
from prepare.sources import published as known_files
from prepare.sources.plays import HELD_OUT, read_play
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.documents import shard_of
from tests.helpers.loopback_hub import Fault, LoopbackHub

SCRIPT = "prepare/eval_sets.py"


def test_lambada_is_downloaded_once_and_checked(tmp_path: Path, real_data: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(real_data / "lambada_test.jsonl", served)
    with LoopbackHub(served, [Fault("lambada", status=503), Fault("lambada", drop_after=9999)]) as hub:
        options = ("lambada", "--lambada-url", f"{hub.endpoint}/lambada_test.jsonl", "--out", tmp_path / "out")
        for _ in range(2):
            result = run_command("python", SCRIPT, *options, **hub.environment(tmp_path))
            assert result.returncode == 0, result.stderr
            assert "lambada_test.jsonl: 5,153 passages" in result.stdout
        assert hub.ranges("lambada") == [None, None, "bytes=9999-"]
    assert (tmp_path / "out/lambada_test.jsonl").read_bytes() == (real_data / "lambada_test.jsonl").read_bytes()


def test_hellaswag_is_known_by_its_git_blob(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "h.jsonl").write_text('{"ind": 0}\n')
    with LoopbackHub(served) as hub:
        options = ("hellaswag", "--hellaswag-url", f"{hub.endpoint}/h.jsonl", "--out", tmp_path / "out")
        assert "hash differs" in one_line_error(run_command("python", SCRIPT, *options, **hub.environment(tmp_path)))
    assert list((tmp_path / "out").iterdir()) == []


def test_wikitext_is_put_together_from_the_hub_s_rows(tmp_path: Path) -> None:
    text = " \n = Title = \n \n Some words . \n"
    lines = ["" if line == " \n" else line for line in text.splitlines(keepends=True)]
    for name in ("wikitext-2-v1", "wikitext-103-v1"):
        folder = tmp_path / "served/datasets/Salesforce/wikitext" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": lines}), folder / "test-00000-of-00001.parquet")
    with LoopbackHub(tmp_path / "served") as hub:
        hub.commit = lambda _repo: known_files.WIKITEXT2.revision
        for _ in range(2):
            options = ("wikitext2", "wikitext103", "--out", tmp_path / "out")
            result = run_command("python", SCRIPT, *options, **hub.environment(tmp_path))
            assert result.returncode == 0, result.stderr
            assert result.stdout.count("_test.tokens: 4 lines") == 2
        assert len(hub.ranges(".parquet")) == 2
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "wikitext2_test.tokens": text,
        "wikitext103_test.tokens": text,
    }


def test_without_a_network(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path) as hub:
        world = hub.environment(tmp_path)
    error = one_line_error(run_command("python", SCRIPT, "--out", tmp_path / "out", **world))
    assert "cannot get https://raw.githubusercontent.com/" in error
    assert f"copy the file from a machine with a network to {tmp_path}/out/hellaswag_val.jsonl" in error
    assert list((tmp_path / "out").iterdir()) == []
    assert "continuation" in one_line_error(run_command("python", SCRIPT, "wikitext5"), 2)


def test_tasks_out_of_held_out_text(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "data", [read_play(HELD_OUT[0])], GPT2Tokenizer())
    out = tmp_path / "tasks.jsonl"
    command = ("python", SCRIPT, "continuation", "--shards", tmp_path / "data/*_val_*.bin", "--out", out)
    result = run_command(*command, "--tasks", 150, "--seed", 3)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == make_tasks([shard], 150, 3)
    too_many = run_command(*command[:-1], tmp_path / "many.jsonl", "--tasks", 999_999)
    assert "999999 tasks need 999999" in one_line_error(too_many)
    assert "a folder" in one_line_error(run_command(*command[:-1], tmp_path), 2)
    assert "a folder" in one_line_error(run_command(*command[:-1], out / "x.jsonl"), 2)
    assert "no token shards match" in one_line_error(run_command("python", *command[1:-3], tmp_path / "absent*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tasks.jsonl"]
