"""Download files from the Hugging Face hub and from plain URLs: retried, checked, and renamed when they are complete.

The hub's files come through huggingface_hub's own download (over Xet storage in parallel, where the hub offers it;
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as usual), which resumes a dropped connection and retries when the hub is
busy. It gives up on a server error, does not check a file against the sha256 that the hub states, and keeps the
leftovers of a killed process: that is handled here. A killed download restarts its file (2 GB of FineWeb).
"""

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HTTPError, OfflineModeIsEnabled

from prepare.common.cli import UserError, first_line, write_line
from prepare.common.files import FileLock, allow_soft_locks, atomic_write, file_sha256, fsync_path

WAITS = (1, 4, 16)  # seconds before each retry, on top of huggingface_hub's own
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth a retry
TIMEOUT = 30  # seconds without a byte
T = TypeVar("T")


def hub_files(repo: str, folder: str, suffix: str, revision: str = "main") -> tuple[str, list[str]]:
    """The commit of a dataset repository, and its sorted files directly in `folder` ("": its top) with this suffix.

    `revision` may be a branch, a tag or a commit. UserError when the hub cannot be reached or there are none.
    """

    def list_files() -> tuple[str, list[str]]:
        api = HfApi()
        commit = str(api.dataset_info(repo, revision=revision, timeout=TIMEOUT).sha)
        entries = api.list_repo_tree(repo, folder or None, revision=commit, repo_type="dataset")
        return commit, sorted(entry.path for entry in entries if entry.path.endswith(suffix))

    commit, files = _retry(list_files, f"{repo} on {constants.ENDPOINT}", "fetch its files elsewhere, and use --input")
    if not files:
        raise UserError(f"{repo} at {revision} has no *{suffix} in {folder or 'its top folder'}: try another revision")
    return commit, files


def fetch_hub_file(repo: str, path: str, revision: str, into: Path) -> Path:
    """Download one file of a dataset repository to `into`/`path`, unless the right one (by sha256) is there already.

    The hub states the sha256 of large files; small ones, stored in git, are downloaded again.
    """
    url, final = hf_hub_url(repo, path, repo_type="dataset", revision=revision), into / path
    remedy = f"or copy the file from a machine with a network to {final}"
    stated = _retry(lambda: get_hf_file_metadata(url, timeout=TIMEOUT), url, remedy)
    sha256 = stated.etag if re.fullmatch("[0-9a-f]{64}", stated.etag or "") else None
    if sha256 and _has_sha256(final, sha256):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(final.name + ".part")  # a folder, with huggingface_hub's own temporary files in it

    def download() -> None:
        shutil.rmtree(part, ignore_errors=True)  # left by a killed process
        got = Path(hf_hub_download(repo, path, repo_type="dataset", revision=revision, local_dir=part))
        if sha256 and file_sha256(got) != sha256:
            raise _WrongContent(f"its sha256 is not {sha256}")
        fsync_path(got)
        got.replace(final)

    lock = final.with_name(final.name + ".lock")
    with FileLock(lock, final, "wait for it, or choose another folder"):
        write_line(f"downloading {url}" + (f" ({stated.size / 1e6:,.1f} MB)" if stated.size else ""))
        try:
            _retry(download, url, remedy)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink()
    return final


def fetch_url(url: str, into: Path, sha256: str) -> Path:
    """Download a file of some megabytes to `into`, unless `into` has this sha256 already; return `into`."""

    def download() -> None:
        response = get_session().get(url, follow_redirects=True, timeout=TIMEOUT)
        response.raise_for_status()
        if hashlib.sha256(response.content).hexdigest() != sha256:
            raise _WrongContent(f"its sha256 is not {sha256}")
        into.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(into) as file:
            file.write(response.content)

    if not _has_sha256(into, sha256):
        _retry(download, url, f"or copy the file from a machine with a network to {into}")
    return into


class _WrongContent(Exception):
    """The downloaded file has another checksum."""


def _has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _retry(ask: Callable[[], T], what: str, remedy: str) -> T:
    """Call `ask` until it succeeds, waiting longer each time. UserError gives the last error, and the remedy."""
    allow_soft_locks()
    waits = iter(WAITS)
    while True:
        try:
            return ask()
        except OfflineModeIsEnabled:
            raise UserError(f"HF_HUB_OFFLINE is set, and {what} is needed: unset it, {remedy}") from None
        except (HTTPError, EntryNotFoundError, OSError, RuntimeError, _WrongContent) as failure:  # RuntimeError: hf_xet
            if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                raise
            wait, reason = next(waits, None), first_line(failure)
            status = getattr(getattr(failure, "response", None), "status_code", None)
            if isinstance(failure, GatedRepoError):
                raise UserError(f"{what} is gated: accept its terms on the hub, set HF_TOKEN, {remedy}") from None
            if wait is None or (status and status not in TRANSIENT):
                hub = ", set HF_TOKEN if it is private, HF_ENDPOINT for a mirror" if constants.ENDPOINT in what else ""
                raise UserError(f"cannot get {what} ({reason}): check the network{hub}, {remedy}") from None
            write_line(f"{what}: {reason}; trying again in {wait:g} s")
            time.sleep(wait)
