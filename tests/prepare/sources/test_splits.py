"""Which files train, validate or are left out; small files as one source; how much is held out."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prepare.fineweb import main
from prepare.sources.inputs import LocalFile, find_inputs
from prepare.sources.splits import EVERYTHING, SmallFiles, assign_splits, group_small_files, hold_out, leave_out_copies
from prepare.tokens.manifest import read_manifest
from tests.helpers.documents import write_documents

TEXTS = [f"{number} Once upon a time there was a story." for number in range(12)]


def files_of(folder: Path, choice: str = "auto", *patterns: str) -> dict[str, str | None]:
    files = [LocalFile(path, "text") for path in find_inputs(patterns or [folder])]
    return {str(file.path.relative_to(folder)): file.split for file in assign_splits(files, choice)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("Stories-train.txt Stories-valid.txt", "val Stories-valid.txt train Stories-train.txt"),
        ("data/test-0-of-1.txt data/train-0-of-1.txt data/validation-0-of-1.txt",
         "val data/validation-0-of-1.txt train data/train-0-of-1.txt"),
        ("dev/a.txt test/a.txt train/a.txt", "val dev/a.txt train train/a.txt"),
        ("dev/train.txt dev/val.txt", "val dev/val.txt train dev/train.txt"),  # the file's own name decides
        ("c4.train.00000.txt c4-validation.00000.txt more.txt",
         "val c4-validation.00000.txt train c4.train.00000.txt more.txt"),
        ("book.txt my_val_1.txt", "val my_val_1.txt train book.txt"),
        ("test_sft.txt train_sft.txt", "None train_sft.txt"),
        ("a.txt test.txt", "None a.txt"),
        ("a.txt latest.txt medieval.txt device.txt", "None a.txt device.txt latest.txt medieval.txt"),
        ("Night_Train.txt b.txt", "None Night_Train.txt b.txt"),
        ("test.txt", "None test.txt"),
        ("valid.txt", "None valid.txt"),
    ],
)  # fmt: skip
def test_splits_are_recognised_by_their_names(tmp_path, capsys, names, expected):
    folder = tmp_path / "test" / "valid"  # the folders above the input say nothing
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found: dict[str | None, list[str]] = {}
    for name, split in files_of(folder).items():
        found.setdefault(split, []).append(name)
    assert " ".join(f"{split} {' '.join(names)}" for split, names in found.items()) == expected
    told = capsys.readouterr().out
    left_out = [name for name in names.split() if name not in expected]
    assert told.count("\n") == (bool(left_out) or "val" in found)
    assert all(Path(name).name in told.split("left out:")[1] for name in left_out)
    for choice, split in (("none", None), ("train", "train"), ("val", "val")):
        assert files_of(folder, choice) == dict.fromkeys(sorted(names.split()), split)
    assert capsys.readouterr().out == ""


def test_a_data_set_as_it_lies_on_the_hub(tmp_path, capsys):
    """Splits by name in two formats, of which one is read; what validates does not train."""
    train, val, test = TEXTS[:6], TEXTS[6:9], TEXTS[9:]
    parts = {"train-0-of-2": train[:4], "train-1-of-2": train[4:], "validation-0-of-1": val, "test-0-of-1": test}
    (tmp_path / "in/data").mkdir(parents=True)
    for name, texts in parts.items():
        write_documents(tmp_path / f"in/data/{name}.parquet", [{"text": text} for text in texts])
    for name, texts in (("train", train), ("valid", val)):
        (tmp_path / f"in/Stories-{name}.txt").write_text("\n" + "\n<|endoftext|>\n".join(texts))
    main(["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    manifest = read_manifest(tmp_path / "out")
    names = ["fineweb_val_000000.bin", "fineweb_train_001000.bin"]
    assert [(shard["file"], shard["documents"]) for shard in manifest["shards"]] == [(names[0], 3), (names[1], 6)]
    assert manifest["inputs"][1]["files"] == ["train-0-of-2.parquet", "train-1-of-2.parquet"]
    told = capsys.readouterr().out
    assert "left out: test-0-of-1.parquet" in told
    assert "another format: Stories-train.txt, Stories-valid.txt" in told


def test_copies(tmp_path, capsys):
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two"), ("e.txt", ""), ("f.txt", "")):
        (tmp_path / name).write_text(text)
    write_documents(tmp_path / "d.jsonl", [{"text": "of another text"}])
    files = [LocalFile(path, "text") for path in find_inputs([tmp_path])]
    assert leave_out_copies(files) == files
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path}/b.txt has the contents of {tmp_path}/a.txt: ")
    files[0].split = "val"
    leave_out_copies(files)
    assert "validates" in capsys.readouterr().err


@pytest.mark.parametrize("batch_bytes", [1, 100, 10**6])
def test_small_files_are_one_source_of_all_their_documents(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr("prepare.sources.batches.BATCH_BYTES", batch_bytes)
    values = [["a", None, "b", "c"], [], [None], ["d" * 60, "e"], ["", None]]
    for number, texts in enumerate(values):
        write_documents(tmp_path / f"{number}.jsonl", [{"text": text} for text in texts])
    (tmp_path / "5.txt").write_text("f")
    small = SmallFiles([LocalFile(path, "text") for path in find_inputs([tmp_path])])
    rows = [value for texts in [*values, ["f"]] for value in texts]
    for start in range(len(rows) + 1):
        read = start
        found = {}
        for batch in small.batches(start):
            found |= {read + int(row): text for row, text in zip(batch.rows, batch.texts.to_pylist(), strict=True)}
            read += batch.read
            assert 0 <= batch.done <= 1
        assert found == {row: value for row, value in enumerate(rows) if row >= start and value is not None}
        assert read == len(rows)


def test_small_files_of_a_split_share_their_shards_and_larger_ones_do_not(tmp_path):
    for name, size in (("a", 10), ("b", 200), ("c", 10), ("d", 99), ("e", 100), ("f", 10)):
        (tmp_path / f"{name}.txt").write_text(name * size)
    files = [LocalFile(path, "text") for path in find_inputs([tmp_path])]
    files[-1].split = "val"
    assert [source.name for source in group_small_files(files, 100)] == ["a.txt and 2 more", "b.txt", "e.txt", "f.txt"]
    assert group_small_files(files, 10) == files


@pytest.mark.parametrize(
    ("sizes", "shard", "fraction", "expected"),
    [
        ([100_000], 10**8, None, [5000]),
        ([1000], 10**8, None, [129]),  # one window of the quickstart
        ([200], 10**8, None, [100]),
        ([100_000], 10**8, 0.2, [20_000]),
        ([1000, 40_000, 59_000], 10**8, None, [EVERYTHING, 4000, None]),  # all of the first is not enough
        ([100_000, 100_000], 1000, None, [None, None]),  # the first shard, which is what None means
        ([1000, 99_000], 3000, None, [EVERYTHING, 3000]),  # a large file is cut where it always is
        ([100_000], 60_000, None, [None]),  # even if it is most of the text: a large file's bytes never change
        ([100_000, 100_000], 1000, 0.6, [EVERYTHING, 20_000]),
        ([0, 100_000], 10**8, None, [EVERYTHING, 5000]),
    ],
)
def test_how_much_is_held_out(tmp_path, sizes, shard, fraction, expected):
    sources = []
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.txt").write_text("x" * size)
        sources.append(LocalFile(tmp_path / f"{number}.txt", "text"))
    tokens_of = lambda texts: SimpleNamespace(tokens=np.zeros(sum(map(len, texts.to_pylist()))))  # noqa: E731
    hold_out(sources, shard, fraction, tokens_of)
    assert [source.held_out for source in sources] == expected
