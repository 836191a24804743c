"""Tokenizing: the same bytes whatever the workers, tasks and interruptions; one process to a folder."""

import argparse
import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prepare.common.cli import UserError
from prepare.pipeline.options import array_task
from prepare.pipeline.tokenize_job import TokenizeJob, run_job
from prepare.sources.batches import Batch, batch_of
from prepare.sources.inputs import LocalFile, Source
from prepare.tokens.manifest import build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import find_shards, open_shard
from prepare.tokens.tokenizer import ENGINES, EOT, CharTokenizer, GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command, start_command


def make_corpus(folder: Path, files: int = 4, documents: int = 60) -> list[Path]:
    rng = random.Random(0)
    folder.mkdir()
    words = ["token", "shard", "the", "naïve", "日本", "😀", "\n", "<|endoftext|>", "resumes", "42", "  "]
    for number in range(files):
        records = [{"text": " ".join(rng.choices(words, k=rng.randrange(200)))} for _ in range(documents)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return sorted(folder.iterdir())


@pytest.fixture
def corpus(tmp_path) -> list[Path]:
    return make_corpus(tmp_path / "corpus")


def job(inputs: Sequence[Path | Source], **changes: object) -> TokenizeJob:
    sources = [LocalFile(path, "text") if isinstance(path, Path) else path for path in inputs]
    return TokenizeJob(**({
        "inputs": sources, "name": "x", "dataset": "test", "revision": None, "tokenizer": GPT2Tokenizer(),
        "options": {"column": "text"}, "shard_tokens": 3000,
    } | changes))  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(paths: list[Path]) -> list[str]:
    return [json.loads(line)["text"] for path in paths for line in path.read_text().splitlines()]


def test_tokens_are_those_of_tiktoken(corpus, tmp_path):
    manifest = run_job(job(corpus), tmp_path / "out")
    encoding = GPT2Tokenizer()._encoding
    for number, path in enumerate(corpus):
        expected = [token for text in texts([path]) for token in (EOT, *encoding.encode_ordinary(text))]
        shards = [shard for shard in manifest["shards"] if int(shard["file"][-10:-4]) // 1000 == number]
        tokens = [token for shard in shards for token in open_shard(tmp_path / "out" / shard["file"]).tolist()]
        assert tokens == expected
        assert {shard["tokens"] for shard in shards[:-1]} == {3000}
        assert manifest["inputs"][number] == LocalFile(path, "text").identity() | {
            "documents": len(texts([path])),
            "tokens": len(expected),
            "bytes": len("".join(texts([path])).encode()),
            "empty": texts([path]).count(""),
            "skipped": 0,
            "longest": max(len(text.encode()) for text in texts([path])),
            "engines": {"tiktoken": len(texts([path]))},
        }
    names = [shard["file"] for shard in manifest["shards"]]
    assert names[:2] == ["x_val_000000.bin", "x_train_000001.bin"]
    assert sum("_val_" in name for name in names) == 1
    assert sorted(contents(tmp_path / "out")) == sorted([*names, "manifest.json"])
    assert read_manifest(tmp_path / "out") == manifest


@pytest.mark.parametrize("batch", [100, 5000])
def test_same_bytes_for_every_number_of_workers_and_batch_size(corpus, tmp_path, monkeypatch, batch):
    run_job(job(corpus), tmp_path / "one")
    monkeypatch.setattr("prepare.sources.batches.BATCH_BYTES", batch)
    for workers in (1, 2, 7):
        run_job(job(corpus), tmp_path / f"{batch}-{workers}", workers)
        assert contents(tmp_path / f"{batch}-{workers}") == contents(tmp_path / "one")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_same_bytes_for_every_number_of_tasks(corpus, tmp_path, count):
    run_job(job(corpus), tmp_path / "one")
    order = random.Random(count).sample(range(1, count + 1), count)
    for index in order:
        assert read_manifest(tmp_path / "out") is None
        manifest = run_job(job(corpus), tmp_path / "out", 1, (index, count))
        if index <= len(corpus) and manifest is not None:
            break
    for index in range(1, count + 1):  # requeued ones, and those that come last, find it finished
        assert run_job(job(corpus), tmp_path / "out", 1, (index, count)) is not None
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_tasks_at_the_same_time(tmp_path):
    paths = make_corpus(tmp_path / "corpus", files=12, documents=10)
    run_job(job(paths), tmp_path / "one")
    for round_ in range(3):
        results: list[dict | None] = []

        def work(index: int, out: Path = tmp_path / f"out{round_}", results: list = results) -> None:
            results.append(run_job(job(paths), out, 1, (index, 6)))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 6
        assert any(results)
        assert contents(tmp_path / f"out{round_}") == contents(tmp_path / "one")


@dataclass
class Documents(Source):
    """Documents in memory, `together` in a batch. Raises `failure` once, before document `fail_at`; logs the calls."""

    name: str
    documents: Sequence[str | None]
    fail_at: int | None = None
    failure: BaseException = field(default_factory=KeyboardInterrupt)
    together: int = 1
    log: list[str] = field(default_factory=list)

    def identity(self) -> dict:
        return {"name": self.name, "size": len(self.documents)}

    def fetch(self) -> None:
        self.log.append(f"fetch {self.name}")

    def release(self) -> None:
        self.log.append(f"release {self.name}")

    def batches(self, start: int = 0) -> Iterator[Batch]:
        self.log.append(f"read {self.name} from {start}")
        for number in range(start, len(self.documents), self.together):
            if self.fail_at in range(number, number + self.together):
                self.fail_at = None
                raise self.failure
            yield batch_of(self.documents[number : number + self.together], number / len(self.documents))


WORDS = ["word " * (number % 13) + "x" if number % 3 else None for number in range(60)]


def test_a_broken_input_file_keeps_the_finished_ones_and_its_own_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("prepare.pipeline.tokenize_job.DISK_BACKLOG", 0)  # what is finished does not depend on the disk
    log: list[str] = []
    run_job(job([Documents(name, WORDS) for name in "abc"], shard_tokens=100), tmp_path / "one")
    inputs = [Documents(name, WORDS, 50 if name == "b" else None, UserError("b broke"), log=log) for name in "abc"]
    with pytest.raises(UserError, match="b broke"):
        run_job(job(inputs, shard_tokens=100), tmp_path / "out", 2)
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.bin*")}
    assert {int(path.name[-10:-4]) // 1000 for path in left} == {0, 1}
    assert not (tmp_path / "out" / "manifest.json").exists()
    del log[:]
    run_job(job(inputs, shard_tokens=100), tmp_path / "out", 2)
    assert [line.split(" from")[0] for line in log if line.startswith("read")] == ["read b", "read c"]
    assert log.index("fetch c") < log.index("release b")  # the next one comes while this one is tokenized
    assert log[-1] == "release c"
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(("tokens", "which"), [(700, 3), (3000, 0), (3000, 1), (10**6, 0), (10**6, 3)])
def test_a_shard_that_cannot_be_brought_to_disk_is_made_again_and_finished_files_stay(
    corpus, tmp_path, monkeypatch, tokens, which
):
    out, real, order = tmp_path / "out", os.fsync, iter(range(1000))

    def slow_and_full_once(file: int) -> None:
        if str(Path(f"/proc/self/fd/{file}").readlink()).endswith(".bin.tmp"):
            time.sleep(0.02)  # so that others wait for it
            if next(order) == which:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    run_job(job(corpus, shard_tokens=tokens), tmp_path / "one")
    monkeypatch.setattr("prepare.sources.batches.BATCH_BYTES", 3000)
    monkeypatch.setattr(os, "fsync", slow_and_full_once)
    with pytest.raises(OSError, match="No space left"):
        run_job(job(corpus, shard_tokens=tokens), out, 2)
    finished = [path for path in (out / ".progress").glob("*.json") if path.stem.isdecimal()]
    kept = [shard["file"] for path in finished for shard in json.loads(path.read_text())["shards"]]
    assert all((out / name).is_file() for name in kept)
    assert tokens < 10**6 or len(kept) == which  # a shard a file
    assert not list(out.rglob("*.tmp"))
    run_job(job(corpus, shard_tokens=tokens), out, 2)
    assert contents(out) == contents(tmp_path / "one")


def test_what_waits_for_room_does_not_wait_for_a_disk_that_failed(tmp_path, monkeypatch):
    several = [Documents(name, WORDS) for name in "abcd"]
    for source in several:
        source.takes_disk = True
    target = "prepare.pipeline.output_folder.OutputFolder.save_finished"
    monkeypatch.setattr(target, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run_job(job(several), tmp_path / "out")
        except OSError as failure:
            failures.append(failure)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert [failure.strerror for failure in failures] == ["full"]


@pytest.mark.parametrize("fail_at", [1, 30, 59])
@pytest.mark.parametrize("shard_tokens", [7, 64, 999])
def test_resumes_after_the_last_finished_shard(tmp_path, fail_at, shard_tokens, monkeypatch):
    monkeypatch.setattr("prepare.pipeline.tokenize_job.DISK_BACKLOG", 0)  # so that what is finished is known
    out = tmp_path / "out"
    run_job(job([Documents("a", WORDS)], shard_tokens=shard_tokens), tmp_path / "one")
    source = Documents("a", WORDS, fail_at)
    with pytest.raises(KeyboardInterrupt):
        run_job(job([source], shard_tokens=shard_tokens), out)
    saved = out / ".progress" / "000.part.json"
    record = json.loads(saved.read_bytes()) if saved.is_file() else {"rows": 0, "shards": []}
    times = [(out / shard["file"]).stat().st_mtime_ns for shard in record["shards"]]
    run_job(job([source], shard_tokens=shard_tokens), out)
    assert contents(out) == contents(tmp_path / "one")
    assert f"read a from {record['rows']}" in source.log
    assert [(out / shard["file"]).stat().st_mtime_ns for shard in record["shards"]] == times
    if fail_at == 59 and shard_tokens < 999:
        assert record["rows"] > 30


def test_a_shard_that_ended_with_a_document_is_resumed_with_the_next(tmp_path, monkeypatch):
    """Both in one batch, which is read again: documents of 2 tokens, shards of 4, batches of 7 and 8 documents."""
    monkeypatch.setattr("prepare.pipeline.tokenize_job.DISK_BACKLOG", 0)
    documents = [None, *"a" * 31]
    expected = run_job(job([Documents("a", documents, together=8)], shard_tokens=4), tmp_path / "one")
    dying = job([Documents("a", documents, 24, together=8)], shard_tokens=4)
    with pytest.raises(KeyboardInterrupt):
        run_job(dying, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / ".progress" / "000.part.json").read_bytes())
    assert saved["rows"] % 8 == 0
    assert {shard["tokens"] for shard in saved["shards"]} == {4}
    assert run_job(dying, tmp_path / "out") == expected
    assert [shard["documents"] for shard in expected["shards"]] == [2] * 15 + [1]


def test_another_file_in_the_place_of_a_half_finished_one_starts_from_scratch(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_job(job([Documents("a", WORDS, 50)], shard_tokens=20), tmp_path / "out")
    source = Documents("a", WORDS[1:])
    run_job(job([source], shard_tokens=20), tmp_path / "out")
    run_job(job([Documents("a", WORDS[1:])], shard_tokens=20), tmp_path / "one")
    assert source.log == ["fetch a", "read a from 0", "release a"]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_the_shards_do_not_depend_on_the_engine(corpus, tmp_path):
    for path in corpus[1:3]:
        path.write_text(path.read_text() + json.dumps({"text": "\U00016eb4'll"}) + "\n")
    manifests = {
        engine: run_job(job(corpus, tokenizer=GPT2Tokenizer(engine)), tmp_path / engine, 2) for engine in ENGINES
    }
    fast, reference = manifests["gigatoken"], manifests["tiktoken"]
    assert fast["shards"] == reference["shards"]
    assert [file["engines"] for file in reference["inputs"]] == [{"tiktoken": n} for n in (60, 61, 61, 60)]
    assert [file["engines"] for file in fast["inputs"]] == [{"gigatoken": 60, "tiktoken": n} for n in (0, 1, 1, 0)]
    for manifest in manifests.values():
        for file in manifest["inputs"]:
            del file["engines"]
    assert fast == reference
    # the other engine may finish a folder
    for index, engine in enumerate(ENGINES, start=1):
        mixed = run_job(job(corpus, tokenizer=GPT2Tokenizer(engine)), tmp_path / "mixed", 1, (index, 2))
    assert mixed["shards"] == fast["shards"]


@pytest.mark.parametrize("engines", [ENGINES, ENGINES[::-1]])
def test_a_file_that_both_engines_worked_on_counts_the_documents_of_each(tmp_path, monkeypatch, engines):
    monkeypatch.setattr("prepare.pipeline.tokenize_job.DISK_BACKLOG", 0)
    source = Documents("a", WORDS, 45)
    first, second = (job([source], shard_tokens=20, tokenizer=GPT2Tokenizer(engine)) for engine in engines)
    with pytest.raises(KeyboardInterrupt):
        run_job(first, tmp_path / "out")
    (facts,) = run_job(second, tmp_path / "out")["inputs"]
    assert facts["engines"].keys() == set(ENGINES)
    assert all(facts["engines"].values())
    assert sum(facts["engines"].values()) == facts["documents"] == 40


def test_a_difference_between_the_engines_stops_the_run_and_names_the_document(corpus, tmp_path, monkeypatch):
    tokenizer = GPT2Tokenizer("gigatoken")
    right = tokenizer._gigatoken.encode

    def wrong(texts):
        tokens, offsets = right(texts)
        tokens[-1] ^= 1
        return tokens, offsets

    corpus[0].write_text('{"text": null}\n{"text": "a"}\n{"text": null}\n{"text": "some text"}\n')
    monkeypatch.setattr(tokenizer._gigatoken, "encode", wrong)
    monkeypatch.setattr("prepare.tokens.tokenizer.random.randrange", lambda count: count - 1)
    with pytest.raises(UserError, match=r"0\.jsonl, row 3: gigatoken's tokens are not tiktoken's"):
        run_job(job(corpus, tokenizer=tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_when_nothing_was_finished(tmp_path):
    with pytest.raises(UserError, match="a broke"):
        run_job(job([Documents("a", WORDS, 30, UserError("a broke"))]), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes").touch()
    source = Documents("a", WORDS)
    source.fetch = lambda: (_ for _ in ()).throw(UserError("no network"))
    with pytest.raises(UserError, match="no network"):
        run_job(job([source]), tmp_path / "old")
    assert list(contents(tmp_path / "old")) == ["notes"]


def test_no_text_at_all(tmp_path):
    for name, content in (("a.jsonl", ""), ("b.txt", ""), ("c.jsonl", '{"text": null}\n{"text": ""}\n')):
        (tmp_path / name).write_text(content)
    for names in (["a.jsonl"], ["b.txt"], ["a.jsonl", "b.txt", "c.jsonl"]):
        with pytest.raises(UserError, match="no text"):
            run_job(job([tmp_path / name for name in names]), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_empty_documents_are_kept_and_nulls_are_not(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n{"text": null}\n{"text": "b"}\n')
    manifest = run_job(job([path]), tmp_path / "out")
    assert open_shard(tmp_path / "out" / "x_val_000000.bin").tolist() == [EOT, 64, EOT, EOT, 65]
    facts = manifest["inputs"][0]
    assert (facts["documents"], facts["empty"], facts["skipped"]) == (3, 1, 1)
    assert manifest["shards"][0]["documents"] == 3


def test_characters_have_no_separator_and_a_source_may_choose_its_split(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ab"}\n{"text": "ba"}\n')
    held_out, train = LocalFile(path, "text"), LocalFile(path, "text")
    held_out.split, train.split = "val", "train"
    run_job(job([held_out, train], tokenizer=CharTokenizer("ab"), shard_tokens=3), tmp_path / "out")
    shards = {path.name: open_shard(path).tolist() for path in find_shards(str(tmp_path / "out" / "*.bin"))}
    assert shards == {
        "x_train_001000.bin": [0, 1, 1],
        "x_train_001001.bin": [0],
        "x_val_000000.bin": [0, 1, 1],
        "x_val_000001.bin": [0],
    }


def test_another_job_is_refused_and_the_difference_named(corpus, tmp_path):
    out = tmp_path / "out"
    changed = tmp_path / "changed" / corpus[2].name
    changed.parent.mkdir()
    changed.write_text(corpus[2].read_text() + '{"text": "more"}\n')
    others = {
        r"shard_tokens 3000, not 4000": job(corpus, shard_tokens=4000),
        r"column text, not body": job(corpus, options={"column": "body"}),
        r"name x, not y": job(corpus, name="y"),
        r"revision None, not abc": job(corpus, revision="abc"),
        r"tokenizer .*gpt2.*char": job(corpus, tokenizer=CharTokenizer("ab")),
        r"number of input files 4, not 3": job(corpus[:3]),
        r"name of input file 0 0\.jsonl, not 1\.jsonl": job([corpus[1], corpus[0], *corpus[2:]]),
        r"size of input file 2 ": job([*corpus[:2], changed, corpus[3]]),
    }
    run_job(job(corpus), out, 1, (1, 2))
    for finished in (False, True):
        if finished:
            run_job(job(corpus), out, 1, (2, 2))
        before = contents(out)
        for message, other in others.items():
            with pytest.raises(UserError, match=message):
                run_job(other, out)
        after = contents(out)
        assert {name: after.get(name) for name in before if "lock" not in name} == {
            name: data for name, data in before.items() if "lock" not in name
        }
    assert after.keys() == before.keys()  # no .progress is left in a finished folder


def test_shards_of_something_else_are_left_alone(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_train_000001.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"x_train_000001\.bin is there"):
        run_job(job(corpus), tmp_path / "out")
    assert contents(tmp_path / "out") == {"x_train_000001.bin": b"precious"}
    with pytest.raises(OSError, match=r"File exists.*x_train_000001\.bin"):  # run_command makes it one line
        run_job(job(corpus), tmp_path / "out" / "x_train_000001.bin")
    write_manifest(tmp_path / "out", build_manifest("other", None, [], GPT2Tokenizer().describe(), {}, []))
    with pytest.raises(UserError, match="made with dataset other, not test"):
        run_job(job(corpus), tmp_path / "out")
    assert not (tmp_path / "out" / ".progress").exists()


def test_deleted_shards_of_a_finished_folder_are_made_again(corpus, tmp_path):
    run_job(job(corpus), tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "x_train_002001.bin").unlink()
    os.truncate(tmp_path / "out" / "x_val_000000.bin", 1000)
    run_job(job(corpus), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_array_tasks_are_numbered_from_one():
    assert array_task("3/8") == (3, 8)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/4", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            array_task(wrong)


# --- processes --------------------------------------------------------------------------------------------------------


def command(paths: list[Path], out: Path, *more: object) -> list[object]:
    return ["python", "prepare/fineweb.py", "--input", *paths, "--out", out, "--shard-tokens", 20_000, *more]


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again(tmp_path):
    paths = make_corpus(tmp_path / "corpus", files=5, documents=5000)
    assert run_command(*command(paths, tmp_path / "one")).returncode == 0
    rng = random.Random(3)
    kills = unfinished = 0
    while kills < 10:
        out = tmp_path / f"out{kills}"
        for _ in range(5):
            process = start_command(*command(paths, out, "--workers", rng.randint(1, 3)))
            before = len(list(out.glob("*.bin")))
            while len(list(out.glob("*_*.bin*"))) <= before and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            unfinished += bool(list(out.glob(".progress/*.part.json")))
        again = run_command(*command(paths, out, "--workers", rng.randint(1, 3)))
        assert again.returncode == 0, again.stderr
        assert contents(out) == contents(tmp_path / "one")
    assert unfinished > 2  # some were killed within an input file, after its first shard


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_line_and_the_next_run_resumes(tmp_path):
    paths = make_corpus(tmp_path / "corpus", files=3, documents=600)
    disk = tmp_path / "disk"
    disk.mkdir()
    assert run_command(*command(paths, tmp_path / "one")).returncode == 0
    needed = sum(path.stat().st_size for path in (tmp_path / "one").iterdir())
    mount = run_command("mount", "-t", "tmpfs", "-o", f"size={needed * 2 // 3}", "tmpfs", disk)
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    try:
        assert "No space left" in one_line_error(run_command(*command(paths, disk / "out")))
        assert not list((disk / "out").glob("*.tmp"))
        assert list((disk / "out").glob("*.bin"))
        assert run_command("mount", "-o", f"remount,size={needed * 2}", disk).returncode == 0
        again = run_command(*command(paths, disk / "out"))
        assert again.returncode == 0, again.stderr
        assert contents(disk / "out") == contents(tmp_path / "one")
    finally:
        run_command("umount", disk)
