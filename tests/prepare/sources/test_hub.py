"""Downloads from a real HTTP server that misbehaves: what arrives is whole and right, or one line says what to do."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from prepare.common.cli import UserError
from prepare.sources import hub as download
from prepare.sources.hub import fetch_hub_file, fetch_url, hub_files
from tests.helpers.commands import ROOT, one_line_error, run_command
from tests.helpers.loopback_hub import CLOSED, Fault, LoopbackHub

REPO = "owner/words"
BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub with one repository and one plain file, used by this process; the waits between tries are short."""
    repo = tmp_path / "served/datasets" / REPO
    (repo / "sample/10BT").mkdir(parents=True)
    (repo / "README.md").write_text("# words\n")
    for index in range(5):
        (repo / f"sample/10BT/{index:03d}_00000.parquet").write_bytes(BODY[index:])
    (tmp_path / "served/plain.txt").write_bytes(BODY)
    monkeypatch.setattr(download, "BACKOFF", (0.01, 0.02, 0.03))
    with LoopbackHub(tmp_path / "served", page=2) as server:
        server.adopt(monkeypatch, tmp_path)
        yield server
    close_session()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def test_listing_follows_every_page_and_names_the_commit(hub: LoopbackHub) -> None:
    listing = hub_files(REPO, "sample/10BT", ".parquet")
    assert listing.files == [f"sample/10BT/{index:03d}_00000.parquet" for index in range(5)]
    assert listing.revision == hub.commit(hub.folder / "datasets" / REPO)
    assert hub_files(REPO, "", ".md", revision=listing.revision).files == ["README.md"]


def test_listing_waits_out_a_busy_hub(hub: LoopbackHub) -> None:
    hub.faults += [Fault("/api/", status=429, retry_after=0), Fault("/api/", status=503)]
    assert len(hub_files(REPO, "sample/10BT", ".parquet").files) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("owner/absent", "sample/10BT", ".parquet"), "does not exist or is private"),
        ((REPO, "sample/absent", ".parquet"), "does not exist"),
        ((REPO, "sample/10BT", ".jsonl"), "has no *.jsonl"),
        ((REPO, "sample/10BT", ".parquet", "v9"), "does not exist"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_listing_of_what_is_not_there(arguments: tuple, said: str) -> None:
    with pytest.raises(UserError, match="owner/") as error:
        hub_files(*arguments)
    assert said in str(error.value)


def test_large_and_small_files_of_the_hub(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    revision = hub_files(REPO, "", ".md").revision
    path = "sample/10BT/003_00000.parquet"
    assert fetch_hub_file(REPO, path, revision, tmp_path / "into") == tmp_path / "into" / path
    assert (tmp_path / "into" / path).read_bytes() == BODY[3:]
    assert fetch_hub_file(REPO, "README.md", revision, tmp_path / "into").read_text() == "# words\n"
    sent = {seen.host.split(":")[0]: seen.authorization for seen in hub.requests if path in seen.path}
    assert sent == {"127.0.0.1": "Bearer hf_secret", "localhost": None}, "the token leaves for the hub alone"


def test_a_right_file_is_not_fetched_again_and_a_wrong_one_is(hub: LoopbackHub, tmp_path: Path) -> None:
    final = tmp_path / "into/plain.txt"
    for expected in (1, 1):  # the second time nothing is asked
        fetch_url(f"{hub.endpoint}/plain.txt", final, sha256=SHA256)
        assert len(hub.requests) == expected
    final.write_bytes(b"x" + BODY[1:])  # of the same size
    fetch_url(f"{hub.endpoint}/plain.txt", final, sha256=SHA256)
    assert len(hub.requests) == 2
    assert final.read_bytes() == BODY
    assert names(tmp_path / "into") == ["plain.txt"]


@pytest.mark.parametrize(
    ("faults", "had"),  # what goes wrong, and the bytes that were there at each request
    [
        ([Fault("plain", drop_after=100_000), Fault("plain", drop_after=50_000)], [0, 100_000, 150_000]),
        ([Fault("plain", drop_after=0), Fault("plain", drop_after=0)], [0, 0, 0]),
        ([Fault("plain", status=500), Fault("plain", status=503), Fault("plain", drop_after=1)], [0, 0, 0, 1]),
        # more drops than a standstill gets tries, each after some progress
        ([Fault("plain", drop_after=20_000, times=5)], [0, 20_000, 40_000, 60_000, 80_000, 100_000]),
    ],
)
def test_drops_and_errors_are_retried_and_resumed(hub: LoopbackHub, tmp_path: Path, faults: list, had: list) -> None:
    hub.faults += [replace(fault) for fault in faults]
    fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
    assert (tmp_path / "plain.txt").read_bytes() == BODY
    assert hub.ranges("plain") == [None if have == 0 else f"bytes={have}-" for have in had]


def test_retry_after_is_waited_for(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    hub.faults += [Fault("plain", status=429, retry_after=7), Fault("plain", status=429)]
    hub.faults += [Fault("plain", status=429, rate_limit='"api";r=0;t=55')]
    fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
    assert [wait for wait in waited if wait] == [7, download.BACKOFF[1], 56]


def test_a_hub_that_would_answer_more_is_not_waited_for(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    hub.faults.append(Fault("plain", status=503, rate_limit='"api";r=5;t=55'))
    fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
    assert [wait for wait in waited if wait] == [download.BACKOFF[0]]


def test_a_killed_download_goes_on_where_it_stopped(hub: LoopbackHub, tmp_path: Path) -> None:
    path = "sample/10BT/000_00000.parquet"
    hub.faults.append(Fault("000_00000.parquet", delay=0.01))
    call = f"fetch_hub_file({REPO!r}, {path!r}, 'main', Path({str(tmp_path)!r}))"
    code = f"from pathlib import Path; from prepare.sources.hub import fetch_hub_file; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    part = tmp_path / (path + ".part")
    while process.poll() is None and not (part.exists() and part.stat().st_size > 20_000):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 20_000 < have < len(BODY)
    assert not (tmp_path / path).exists()
    fetch_hub_file(REPO, path, "main", tmp_path)
    assert (tmp_path / path).read_bytes() == BODY
    assert hub.ranges("000_00000.parquet")[-1] == f"bytes={have}-"


def test_a_part_of_another_file_is_thrown_away(hub: LoopbackHub, tmp_path: Path) -> None:
    for stale in (b"another file's beginning", b"z" * len(BODY), b"z" * (len(BODY) + 5), BODY):
        (tmp_path / "plain.txt.part").write_bytes(stale)
        fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
        assert (tmp_path / "plain.txt").read_bytes() == BODY
        (tmp_path / "plain.txt").unlink()


def test_a_part_is_thrown_away_where_no_hash_can_tell_whose_it_is(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "plain.txt.part").write_bytes(b"another file's beginning")
    fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt")
    assert (tmp_path / "plain.txt").read_bytes() == BODY


def test_the_rest_of_a_part_may_break_off_too(hub: LoopbackHub, tmp_path: Path) -> None:
    have = len(BODY) * 3 // 4
    (tmp_path / "plain.txt.part").write_bytes(BODY[:have])
    hub.faults.append(Fault("plain", drop_after=1000))
    fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
    assert hub.ranges("plain") == [f"bytes={have}-", f"bytes={have + 1000}-"]


def test_wrong_content_never_gets_the_name(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults += [Fault("plain", corrupt=True, times=2), Fault("001_00000", corrupt=True, times=2)]
    with pytest.raises(UserError, match=r"hash differs.*copy the file"):
        fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "into/plain.txt", sha256=SHA256)
    with pytest.raises(UserError, match="hash differs"):
        fetch_hub_file(REPO, "sample/10BT/001_00000.parquet", "main", tmp_path / "into")
    assert [name for name in names(tmp_path / "into") if "." in name] == []


def test_git_blob_ids(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(BODY)
    blob = subprocess.run(["git", "hash-object", tmp_path / "text"], capture_output=True, text=True).stdout.strip()
    fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "a", git_blob=blob)
    with pytest.raises(UserError, match="hash differs"):
        fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "b", git_blob="0" * 40)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("plain", status=404), "answered 404 Not Found"),
        (Fault("plain", status=500, times=99), "cannot get .*500 Internal Server Error.*check the network"),
        (Fault("plain", status=429, retry_after=4000), "answered 429 .* asks to wait 4000 s: run"),
        (Fault("plain", drop_after=0, times=99), "cannot get"),
    ],
)
def test_giving_up_says_what_to_do(hub: LoopbackHub, tmp_path: Path, fault: Fault, said: str) -> None:
    hub.faults.append(fault)
    with pytest.raises(UserError, match=said) as error:
        fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "into/plain.txt", sha256=SHA256)
    assert f"copy the file from a machine with a network to {tmp_path}/into/plain.txt" in str(error.value)
    assert names(tmp_path / "into") == []


def test_no_network(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = hub_files(REPO, "", ".md").revision
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*--input"):
        hub_files(REPO, "", ".md")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*copy the file"):
        fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    close_session()
    with pytest.raises(UserError, match=r"refused.*HF_ENDPOINT.*--input"):
        hub_files(REPO, "", ".md")
    with pytest.raises(UserError, match=r"refused.*copy the file"):
        fetch_hub_file(REPO, "README.md", revision, tmp_path / "into")
    with pytest.raises(UserError, match="refused"):  # the proxy that these tests give to every other machine
        fetch_url("http://example.com/plain.txt", tmp_path / "plain.txt", sha256=SHA256)
    assert os.environ["HTTP_PROXY"] == CLOSED


@pytest.mark.parametrize("answer", [b"<html>please log in</html>", b"", b'{"hello": 1}', b"[1, 2]", b'"hello"'])
@pytest.mark.parametrize("where", ["/revision/", "/tree/"])
def test_an_endpoint_that_is_no_hub(hub: LoopbackHub, where: str, answer: bytes) -> None:
    hub.faults.append(Fault(where, status=200, answer=answer))
    with pytest.raises(UserError, match=rf"{hub.endpoint} .*no hub's.*HF_ENDPOINT.*--input"):
        hub_files(REPO, "sample/10BT", ".parquet")


@pytest.mark.parametrize("endpoint", ["http://[bad", "http://127.0.0.1:99999", "http://127.0.0.1:port", "http://hub\r"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    result = run_command("python", "-c", "import prepare.download", HF_ENDPOINT=endpoint)
    assert f"HF_ENDPOINT={endpoint!r}" in one_line_error(result)


@pytest.mark.usefixtures("hub")
def test_a_token_that_no_header_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "tökén")
    for ask in (
        lambda: hub_files(REPO, "", ".md"),
        lambda: fetch_hub_file(REPO, "README.md", "main", tmp_path / "into"),
    ):
        with pytest.raises(UserError, match="HF_TOKEN") as error:
            ask()
        assert "tökén" not in str(error.value)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file/plain.txt", "file/inside/plain.txt"):
        with pytest.raises(UserError, match="it is a file"):
            fetch_url("http://127.0.0.1:9/plain.txt", tmp_path / path, sha256=SHA256)
