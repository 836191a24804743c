"""prepare/fineweb.py from end to end against a hub on loopback that misbehaves."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prepare.pipeline.tokenize_job import KEEP_FILES
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import find_shards, open_shard, shard_number, write_shard
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer
from tests.helpers.commands import ROOT, one_line_error, run_command
from tests.helpers.loopback_hub import Fault, LoopbackHub

SCRIPT = "prepare/fineweb.py"
TEXTS = [[f"File {file}, document {number}: naïve café {number * 7}.\n" for number in range(700)] for file in range(3)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The folder of a FineWeb-Edu of three files and 2,100 documents."""
    folder = tmp_path / "served/datasets/HuggingFaceFW/fineweb-edu/sample/10BT"
    folder.mkdir(parents=True)
    for index, texts in enumerate(TEXTS):
        pq.write_table(pa.table({"text": texts, "id": list(range(700))}), folder / f"{index:03d}_00000.parquet")
    (folder.parents[1] / "README.md").write_text("# FineWeb-Edu\n")
    return folder


def check(out: Path) -> None:
    """The tokens are those of the texts, and verify.py agrees."""
    expected = [token for texts in TEXTS for text in texts for token in [EOT, *GPT2Tokenizer().encode(text)]]
    numbered = sorted(out.glob("*.bin"), key=lambda path: path.name[-10:])
    assert [token for path in numbered for token in open_shard(path).tolist()] == expected
    verified = run_command("python", "prepare/verify.py", out)
    assert verified.returncode == 0, verified.stdout


def test_downloads_through_every_mishap(tmp_path: Path, dataset: Path) -> None:
    faults = [
        Fault("/api/datasets", status=429, retry_after=0),
        Fault("000_00000", drop_after=3000),
        Fault("001_00000", status=500, times=2),
        Fault("002_00000", status=503, method="HEAD"),
        Fault("002_00000", drop_after=1000),
    ]
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served", faults, page=2) as hub:
        command = ("python", SCRIPT, "--edu", "--out", out, "--shard-tokens", 5000)
        result = run_command(*command, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        manifest = read_manifest(out)
        assert manifest["dataset"] == "HuggingFaceFW/fineweb-edu"
        assert manifest["revision"] == hub.commit(dataset.parents[1])
        asked = len(hub.ranges(".parquet"))
        again = run_command(*command, **hub.environment(tmp_path))
        assert "finished already" in again.stdout, again.stderr
        assert len(hub.ranges(".parquet")) == asked, "finished files are not downloaded again"
    check(out)
    assert find_shards(str(out / "*_val_*.bin")) == [out / "finewebedu_val_000000.bin"]
    assert not list(out.rglob("*.parquet*"))


@pytest.mark.usefixtures("dataset")
def test_any_dataset_of_the_hub_as_input(tmp_path: Path, dataset: Path) -> None:
    """hf:// URLs, read from where the files are: a glob, and a folder at a revision."""
    repo = "hf://datasets/HuggingFaceFW/fineweb-edu"
    with LoopbackHub(tmp_path / "served") as hub:
        for url in (f"{repo}/sample/10BT/*.parquet", f"{repo}@{hub.commit(dataset.parents[1])}"):
            out = tmp_path / f"out{len(url)}"
            command = ("python", SCRIPT, "--input", url, "--out", out, "--shard-tokens", 5000)
            result = run_command(*command, **hub.environment(tmp_path))
            assert result.returncode == 0, result.stderr
            check(out)
        absent = f"{repo}-absent/a.parquet"
        result = run_command("python", SCRIPT, "--input", absent, "--out", tmp_path / "no", **hub.environment(tmp_path))
        assert absent in one_line_error(result)
        assert "not found" in result.stderr
        assert not (tmp_path / "no").exists()


def test_a_file_that_is_missing_for_a_while_and_other_commits_meanwhile(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served", [Fault("001_00000", status=404, method="HEAD")]) as hub:
        command = ("python", SCRIPT, "--edu", "--out", out, "--shard-tokens", 5000)
        error = one_line_error(run_command(*command, **hub.environment(tmp_path)))
        assert "001_00000.parquet" in error
        assert not (out / "manifest.json").exists()
        first = len(hub.ranges("000_00000"))
        commit = hub.commit(dataset.parents[1])
        (dataset.parents[1] / "README.md").write_text("# FineWeb-Edu, described anew\n")
        result = run_command(*command, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        assert len(hub.ranges("000_00000")) == first, "the file that was finished is not downloaded again"
        assert read_manifest(out)["revision"] == commit
        (dataset.parents[1] / "README.md").write_text("# FineWeb-Edu, once more\n")
        result = run_command(*command, **hub.environment(tmp_path))
        assert "finished already" in result.stdout, result.stderr
    check(out)


@pytest.mark.usefixtures("dataset")
def test_what_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served") as hub:
        world = hub.environment(tmp_path)
        command = ("python", SCRIPT, "--edu", "--out", out)
        absent = one_line_error(run_command(*command, "--version", "350BT", **world))  # only 10BT is here
        assert "HuggingFaceFW/fineweb-edu" in absent
        hub.stop()
        for more in ((), ("--pretokenized", 1)):
            refused = one_line_error(run_command(*command, *more, **world))
            assert "refused" in refused
            assert "--input" in refused
    assert not out.exists()


def test_published_tokens(tmp_path: Path) -> None:
    repo = tmp_path / "served/datasets/kjj0/fineweb10B-gpt2"
    repo.mkdir(parents=True)
    names = ["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    for number, name in enumerate(names):
        write_shard(repo / name, [EOT, 1, 2, EOT, 3 + number], 2)
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served", [Fault("train_000001", drop_after=1000)]) as hub:
        command = ("python", SCRIPT, "--out", out, "--pretokenized")
        result = run_command(*command, 1, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        assert sorted(path.name for path in out.glob("*.bin")) == sorted(names[:2])
        result = run_command(*command, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        assert len(hub.ranges("train_000001")) == 2, "dropped once; then kept"
        assert "at most" in one_line_error(run_command(*command, 3, **hub.environment(tmp_path)), 2)
    for name in names:
        assert (out / name).read_bytes() == (repo / name).read_bytes()
    hashes = {shard["file"]: shard["sha256"] for shard in read_manifest(out)["shards"]}
    assert hashes == {name: hashlib.sha256((repo / name).read_bytes()).hexdigest() for name in names}
    assert run_command("python", "prepare/verify.py", out).returncode == 0


def test_damaged_published_tokens(tmp_path: Path) -> None:
    repo = tmp_path / "served/datasets/kjj0/fineweb10B-gpt2"
    repo.mkdir(parents=True)
    write_shard(repo / "fineweb_val_000000.bin", [EOT, 1, 2], 1)
    write_shard(repo / "fineweb_train_000001.bin", [EOT, 1, 60_000], 1)
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served", [Fault("fineweb_val", corrupt=True, times=4)]) as hub:
        command = ("python", SCRIPT, "--out", out, "--pretokenized")
        assert "sha256" in one_line_error(run_command(*command, **hub.environment(tmp_path)))
        assert not list(out.glob("*.bin*"))
        error = one_line_error(run_command(*command, **hub.environment(tmp_path)))
        assert "fineweb_train_000001.bin holds token 60000" in error
    assert not (out / "manifest.json").exists()


def test_twelve_files_few_of_them_on_disk_and_one_of_them_corrupt(tmp_path: Path) -> None:
    folder = tmp_path / "served/datasets/HuggingFaceFW/fineweb-edu/sample/10BT"
    folder.mkdir(parents=True)
    texts = [[f"file {file}, document {number}: {number * 7}\n" for number in range(3000)] for file in range(12)]
    for file, some in enumerate(texts):
        pq.write_table(pa.table({"text": some}), folder / f"{file:03d}_00000.parquet", use_dictionary=False)
    faults = [
        Fault("000_00000", drop_after=3000),
        Fault("003_00000", status=429, retry_after=0, times=2),
        Fault("005_00000", drop_after=1000, times=2),
        Fault("007_00000", corrupt=True, times=99),
    ]
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served", faults) as hub:
        words = [SCRIPT, "--edu", "--out", out, "--shard-tokens", 20_000]
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=os.environ | hub.environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        most = 0
        while process.poll() is None:
            most = max(most, len({path.name[:3] for path in (out / ".download").rglob("*.parquet")}))
            time.sleep(0.002)
        said = process.stderr.read()
        assert process.returncode == 1, said
        assert 0 < most <= KEEP_FILES
        (error,) = (line for line in said.splitlines() if line.startswith("error: "))
        assert "007_00000.parquet" in error
        assert "sha256" in error
        finished = {shard_number(path.name) // 1000 for path in out.glob("*.bin")}
        assert finished == set(range(12)) - {7}
        hub.faults.clear()
        asked = len(hub.ranges(".parquet"))
        again = run_command("python", *words, **hub.environment(tmp_path))
        assert again.returncode == 0, again.stderr
        assert len(hub.ranges(".parquet")) == asked + 1
    shards = sorted(out.glob("*.bin"), key=lambda path: path.name[-10:])
    expected = [token for some in texts for text in some for token in [EOT, *GPT2Tokenizer().encode(text)]]
    assert [token for path in shards for token in open_shard(path).tolist()] == expected
