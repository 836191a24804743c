"""prepare/fineweb.py end to end, against a hub on loopback with faults."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import close_session

from prepare import fineweb, verify
from prepare.common.cli import UserError
from prepare.pipeline.tokenize_job import KEEP_FILES
from prepare.sources import hub as download
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import find_shards, open_shard, shard_number
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command
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
    verify.main([str(out)])


def test_downloads_through_every_mishap(tmp_path: Path, dataset: Path) -> None:
    faults = [
        Fault("/api/datasets", status=429, retry_after=0),
        Fault("000_00000", drop_after=3000),
        Fault("001_00000", status=500),
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
        requests = len(hub.ranges(".parquet"))
        again = run_command(*command, **hub.environment(tmp_path))
        assert "finished already" in again.stdout, again.stderr
        assert len(hub.ranges(".parquet")) == requests, "finished files are not downloaded again"
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


def test_a_file_that_is_missing_for_a_while_during_other_commits(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served", [Fault("001_00000", status=404, method="HEAD")]) as hub:
        command = ("python", SCRIPT, "--edu", "--out", out, "--shard-tokens", 5000)
        error = one_line_error(run_command(*command, **hub.environment(tmp_path)))
        assert "001_00000.parquet" in error
        assert not (out / "manifest.json").exists()
        first = len(hub.ranges("000_00000"))
        commit = hub.commit(dataset.parents[1])
        (dataset.parents[1] / "README.md").write_text("# FineWeb-Edu, described again\n")
        result = run_command(*command, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        assert len(hub.ranges("000_00000")) == first, "the file that was finished is not downloaded again"
        assert read_manifest(out)["revision"] == commit
        (dataset.parents[1] / "README.md").write_text("# FineWeb-Edu, once more\n")
        result = run_command(*command, **hub.environment(tmp_path))
        assert "finished already" in result.stdout, result.stderr
    check(out)


def test_twelve_files_few_of_them_on_disk_and_one_of_them_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "served/datasets/HuggingFaceFW/fineweb-edu/sample/10BT"
    folder.mkdir(parents=True)
    texts = [[f"file {file}, document {number}: {number * 7}\n" for number in range(3000)] for file in range(12)]
    for file, some in enumerate(texts):
        pq.write_table(pa.table({"text": some}), folder / f"{file:03d}_00000.parquet", use_dictionary=False)
    monkeypatch.setattr(download, "WAITS", (0.01, 0.01))
    faults = [Fault("cdn/", status=500, times=2), Fault("007_00000", corrupt=True, times=99)]
    out, on_disk = tmp_path / "out", set()
    with LoopbackHub(tmp_path / "served", faults) as hub, ThreadPoolExecutor() as threads:
        hub.adopt(monkeypatch, tmp_path)
        command = ["--edu", "--out", str(out), "--shard-tokens", "20000", "--workers", "1"]
        running = threads.submit(fineweb.main, command)
        while not running.done():
            with suppress(FileNotFoundError):
                on_disk.add(len({name[:3] for name in os.listdir(out / ".download/sample/10BT")}))  # noqa: PTH208
        with pytest.raises(UserError, match=r"007_00000\.parquet .*sha256"):
            running.result()
        assert 0 < max(on_disk) <= KEEP_FILES
        finished = {shard_number(path.name) // 1000 for path in out.glob("*.bin")}
        assert finished == set(range(7))
        hub.faults.clear()
        requests = len(hub.ranges(".parquet"))
        fineweb.main(command)
        assert len(hub.ranges(".parquet")) == requests + 5
    close_session()
    shards = sorted(out.glob("*.bin"), key=lambda path: path.name[-10:])
    expected = [token for some in texts for text in some for token in [EOT, *GPT2Tokenizer().encode(text)]]
    assert [token for path in shards for token in open_shard(path).tolist()] == expected
