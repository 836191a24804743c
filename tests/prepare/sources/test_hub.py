"""Downloads from a real HTTP server with faults: what arrives is complete and has its sha256, or one line says why."""

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
from tests.helpers.commands import ROOT
from tests.helpers.loopback_hub import CLOSED, Fault, LoopbackHub

REPO, PATH = "owner/words", "sample/10BT/003_00000.parquet"
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
    monkeypatch.setattr(download, "WAITS", (0.01, 0.02, 0.03))
    with LoopbackHub(tmp_path / "served", page=2) as server:
        server.adopt(monkeypatch, tmp_path)
        yield server
    close_session()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_listing_follows_every_page_and_names_the_commit(hub: LoopbackHub) -> None:
    hub.faults.append(Fault("/api/", status=503))
    commit, files = hub_files(REPO, "sample/10BT", ".parquet")
    assert files == [f"sample/10BT/{index:03d}_00000.parquet" for index in range(5)]
    assert commit == hub.commit(hub.folder / "datasets" / REPO)
    assert hub_files(REPO, "", ".md", revision=commit) == (commit, ["README.md"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("owner/absent", "sample/10BT", ".parquet"), "404"),
        ((REPO, "sample/absent", ".parquet"), "404"),
        ((REPO, "sample/10BT", ".jsonl"), r"has no \*\.jsonl"),
        ((REPO, "sample/10BT", ".parquet", "v9"), "404"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_listing_of_what_is_missing(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=f"owner/.*{message}"):
        hub_files(*arguments)


def test_large_and_small_files_of_the_hub(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    revision, _ = hub_files(REPO, "", ".md")
    assert fetch_hub_file(REPO, PATH, revision, tmp_path / "into") == tmp_path / "into" / PATH
    assert (tmp_path / "into" / PATH).read_bytes() == BODY[3:]
    assert fetch_hub_file(REPO, "README.md", revision, tmp_path / "into").read_text() == "# words\n"
    sent = {seen.host.split(":")[0]: seen.authorization for seen in hub.requests if PATH in seen.path}
    assert sent == {"127.0.0.1": "Bearer hf_secret", "localhost": None}, "the token is sent to the hub only"
    assert names(tmp_path / "into") == ["003_00000.parquet", "README.md"]


def test_a_complete_file_is_not_downloaded_again_and_a_wrong_one_is(hub: LoopbackHub, tmp_path: Path) -> None:
    plain, large = tmp_path / "plain.txt", tmp_path / "into" / PATH
    for downloads in (1, 1, 2):
        if downloads == 2:  # other files of the same size
            plain.write_bytes(b"x" + BODY[1:])
            large.write_bytes(b"x" + BODY[4:])
        fetch_url(f"{hub.endpoint}/plain.txt", plain, SHA256)
        fetch_hub_file(REPO, PATH, "main", tmp_path / "into")
        assert (plain.read_bytes(), large.read_bytes()) == (BODY, BODY[3:])
        assert len(hub.ranges("plain")) == len(hub.ranges("/cdn/")) == downloads


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("", drop_after=100_000)],
        [Fault("", status=500), Fault("", status=503)],
        [Fault("", status=429, retry_after=0)],
        [Fault("", corrupt=True)],
    ],
)
def test_drops_server_errors_and_corrupt_bodies_are_retried(hub: LoopbackHub, tmp_path: Path, faults: list) -> None:
    hub.faults += [replace(fault, where=where) for fault in faults for where in ("plain", "/cdn/")]
    assert fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", SHA256).read_bytes() == BODY
    assert fetch_hub_file(REPO, PATH, "main", tmp_path / "into").read_bytes() == BODY[3:]
    assert len(hub.ranges("plain")) == len(hub.ranges("/cdn/")) == 1 + len(faults)


def test_a_killed_download_is_started_again_and_leaves_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.append(Fault("/cdn/", delay=0.5))  # for minutes, until it is killed
    call = f"fetch_hub_file({REPO!r}, {PATH!r}, 'main', Path({str(tmp_path / 'into')!r}))"
    code = f"from pathlib import Path; from prepare.sources.hub import fetch_hub_file; {call}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        while process.poll() is None and not list(tmp_path.rglob("*.incomplete")):
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"003_00000.parquet is in use by process {process.pid} on"):
            fetch_hub_file(REPO, PATH, "main", tmp_path / "into")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "into" / PATH).exists()
    assert fetch_hub_file(REPO, PATH, "main", tmp_path / "into").read_bytes() == BODY[3:]
    assert names(tmp_path / "into") == ["003_00000.parquet"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("", status=404), "404"),
        (Fault("", status=500, times=99), "500"),
        (Fault("", drop_after=0, times=99), "cannot get"),
        (Fault("", corrupt=True, times=99), "sha256"),
    ],
)
def test_giving_up_says_what_to_do(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
    hub.faults += [replace(fault, where="plain"), replace(fault, where="/cdn/")]
    for fetch, path in (
        (lambda: fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "into/plain.txt", SHA256), "plain.txt"),
        (lambda: fetch_hub_file(REPO, PATH, "main", tmp_path / "into"), PATH),
    ):
        with pytest.raises(UserError, match=message) as error:
            fetch()
        assert f"copy the file from a machine with a network to {tmp_path}/into/{path}" in str(error.value)
    assert names(tmp_path / "into") == []


def test_no_network(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision, _ = hub_files(REPO, "", ".md")
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    for fetch in (
        lambda: hub_files(REPO, "", ".md"),
        lambda: fetch_hub_file(REPO, "README.md", revision, tmp_path / "into"),
        lambda: fetch_url(f"{hub.endpoint}/plain.txt", tmp_path / "plain.txt", SHA256),
    ):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            fetch()
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    close_session()
    with pytest.raises(UserError, match=r"refused.*HF_ENDPOINT.*--input"):
        hub_files(REPO, "", ".md")
    with pytest.raises(UserError, match=r"refused.*copy the file"):
        fetch_hub_file(REPO, "README.md", revision, tmp_path / "into")
    with pytest.raises(UserError, match="refused"):  # the proxy that these tests give to every other machine
        fetch_url("http://example.com/plain.txt", tmp_path / "plain.txt", SHA256)
    assert os.environ["HTTP_PROXY"] == CLOSED
