"""Published shards: downloaded once, checked, never mixed with others, and described by a manifest."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import close_session

from prepare import fineweb, verify
from prepare.common.cli import ArgumentError, UserError
from prepare.pipeline.pretokenized import fetch_pretokenized
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import EOT
from tests.helpers.commands import mistake
from tests.helpers.loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as server:
        yield server
    close_session()


def publish(hub: LoopbackHub, name: str = "fineweb10B", train: int = 3) -> Path:
    """A repository of a validation shard and `train` training shards."""
    repo = hub.folder / f"datasets/kjj0/{name}-gpt2"
    repo.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(train + 1):
        file = f"{name.partition('1')[0]}_{'train' if number else 'val'}_{number:06d}.bin"
        write_shard(repo / file, rng.integers(0, EOT + 1, 1000).astype(np.uint16))
    return repo


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_correct_shards_are_kept(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.adopt(monkeypatch, tmp_path)
    repo, two = publish(hub, "finewebedu10B"), tmp_path / "two"
    shards = sorted(path.name for path in repo.iterdir())
    shards = shards[-1:] + shards[:-1]  # the validation shard first
    for chunks in (2, 1):
        fetch_pretokenized(two, edu=True, version="10BT", chunks=chunks)
        assert sorted(contents(two)) == sorted([*shards[:3], "manifest.json"]), "those of before stay"
        assert sorted(shard["file"] for shard in read_manifest(two)["shards"]) == sorted(shards[:3])
        assert len(hub.ranges(".bin")) == 3
    (two / shards[2]).write_bytes(b"of something else")
    fetch_pretokenized(two, edu=True, version="10BT", chunks=1)
    assert (two / shards[2]).read_bytes() == (repo / shards[2]).read_bytes()
    fetch_pretokenized(tmp_path / "all", edu=True, version="10BT", chunks=None)
    assert sorted(contents(tmp_path / "all")) == sorted([*shards, "manifest.json"])
    with pytest.raises(ArgumentError, match=r"4.*3 training shards"):
        fetch_pretokenized(tmp_path / "more", edu=True, version="10BT", chunks=4)
    with pytest.raises(ArgumentError, match="FineWeb-Edu 350BT"):
        fetch_pretokenized(tmp_path / "none", edu=True, version="350BT", chunks=None)


def test_they_are_not_mixed_with_others(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.adopt(monkeypatch, tmp_path)
    for name in ("fineweb10B", "fineweb100B", "finewebedu10B"):
        publish(hub, name, train=1)
    for other in ("fineweb_train_000009.bin", "mine.npy"):
        (tmp_path / other).mkdir()
        (tmp_path / other / other).touch()
        with pytest.raises(UserError, match=f"{other} is there, but not in kjj0/fineweb10B-gpt2: choose another --out"):
            fetch_pretokenized(tmp_path / other, edu=False, version="10BT", chunks=None)
        assert list(contents(tmp_path / other)) == [other]
    assert not hub.ranges(".bin")
    fetch_pretokenized(tmp_path / "out", edu=False, version="10BT", chunks=None)
    before = contents(tmp_path / "out")
    for edu, version, other in ((False, "100BT", "fineweb100B"), (True, "10BT", "finewebedu10B")):
        with pytest.raises(UserError, match=f"holds dataset kjj0/fineweb10B-gpt2, not kjj0/{other}-gpt2"):
            fetch_pretokenized(tmp_path / "out", edu, version, None)
        assert contents(tmp_path / "out") == before


def test_the_command(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.adopt(monkeypatch, tmp_path)
    repo, out, text = publish(hub), tmp_path / "out", tmp_path / "a.txt"
    for chunks, names in (([], 4), (["2"], 3)):
        fineweb.main(["--pretokenized", *chunks, "--out", str(out / str(names))])
        manifest = read_manifest(out / str(names))
        assert len(manifest["shards"]) == names
        assert manifest["revision"] == hub.commit(repo)
        shard = "fineweb_train_000002.bin"
        assert (out / str(names) / shard).read_bytes() == (repo / shard).read_bytes()
        verify.main([str(out / str(names))])
    assert "3 training shards" in mistake(fineweb.main, "--pretokenized", 9, "--out", out)[1]
    write_shard(repo / "fineweb_train_000001.bin", np.full(1000, 50257, np.uint16))
    assert "token 50257" in mistake(fineweb.main, "--pretokenized", "--out", tmp_path / "bad")[1]
    text.write_text("text")
    assert "was made with dataset kjj0" in mistake(fineweb.main, "--input", text, "--out", out / "3")[1]
    fineweb.main(["--input", str(text), "--out", str(tmp_path / "mine")])
    assert "holds dataset local files" in mistake(fineweb.main, "--pretokenized", "--out", tmp_path / "mine")[1]
