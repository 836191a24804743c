"""Files from the Hugging Face hub and from plain URLs: resumed, retried, and checked before they get their final name.

A file grows under `NAME.part` in its own folder and is renamed once its size and hash are right, so a final name always
means a whole file, and a killed download goes on where it stopped (hf_hub_download of huggingface_hub 2 starts such a
file afresh, does not look at its hash, and gives up on a 500). The rest is huggingface_hub's: every request goes
through its HTTP client, and HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there.
"""

import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

ENDPOINT = os.environ.get("HF_ENDPOINT", "")
try:  # huggingface_hub takes it apart while it is imported, before there is a run_script to report a UserError
    urlsplit(ENDPOINT).port  # noqa: B018  it raises
    if not ENDPOINT.isprintable():  # the \r of a file that came from Windows
        raise ValueError("it has characters that cannot be seen")
except ValueError as failure:
    sys.exit(f"error: HF_ENDPOINT={ENDPOINT!r} is no address ({failure}): mend or unset it")

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from prepare.common.cli import UserError, first_line
from prepare.common.progress import Progress

BACKOFF = (1, 2, 4, 8, 16, 30)  # seconds before each new try; a server that was never reached gets only the first two
LONGEST_WAIT = 300  # seconds; a longer Retry-After is an error
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # statuses worth another try
TIMEOUT = 30  # seconds without a byte
T = TypeVar("T")


@dataclass(frozen=True)
class HubListing:
    """What one commit of a dataset repository holds: the commit's full sha, and sorted paths of files."""

    revision: str
    files: list[str]


def hub_files(repo: str, folder: str, suffix: str, revision: str = "main") -> HubListing:
    """The files of a dataset repository directly in `folder` ("" is its top) whose names end with `suffix`.

    `revision` may be a branch, a tag or a commit. UserError when the hub cannot be reached or there are none.
    """
    api = HfApi()

    def listing() -> HubListing:
        try:
            commit = api.dataset_info(repo, revision=revision, timeout=TIMEOUT).sha
            entries = api.list_repo_tree(repo, folder or None, revision=commit, repo_type="dataset")
            return HubListing(commit, sorted(entry.path for entry in entries if entry.path.endswith(suffix)))
        except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as failure:  # a login page, perhaps
            raise ValueError(f"the answer is no hub's, {failure!r}") from failure

    found = _retry(listing, f"{repo} on {constants.ENDPOINT}", "fetch its files elsewhere and pass them with --input")
    if not found.files:
        raise UserError(f"{repo} at {revision} has no *{suffix} in {folder or 'its top folder'}: another revision?")
    return found


def fetch_hub_file(repo: str, path: str, revision: str, into: Path) -> Path:
    """Bring one file of a dataset repository to `into`/`path`; nothing is transferred when it is there and right.

    Its size and hash (sha256 of large files, git's blob id of small ones) are those that the hub states.
    """
    url = hf_hub_url(repo, path, repo_type="dataset", revision=revision)
    final = into / path
    remedy = f"or copy the file from a machine with a network to {final}"
    stated = _retry(lambda: get_hf_file_metadata(url, timeout=TIMEOUT), url, remedy)
    etag = stated.etag or ""
    sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
    git_blob = etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None
    return _fetch(url, final, stated.size, sha256, git_blob, build_hf_headers(), remedy)


def fetch_url(url: str, into: Path, sha256: str | None = None, git_blob: str | None = None) -> Path:
    """Bring `url` to the file `into`, whose sha256 or git blob id must be as given; returns `into`.

    Nothing is requested when the file is there and right.
    """
    remedy = f"or copy the file from a machine with a network to {into}"
    return _fetch(url, into, None, sha256, git_blob, {}, remedy)


def is_right(path: Path, size: int | None = None, sha256: str | None = None, git_blob: str | None = None) -> bool:
    """Whether the file exists and has the size and the hash that are given."""
    if not path.is_file() or size not in (None, path.stat().st_size):
        return False
    with path.open("rb") as file:
        if sha256 is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if git_blob is not None:
            blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
            return hashlib.file_digest(file, lambda: blob).hexdigest() == git_blob
    return size is not None


def _fetch(
    url: str,
    final: Path,
    size: int | None,  # bytes, when known beforehand
    sha256: str | None,
    git_blob: str | None,
    headers: Mapping[str, str],
    remedy: str,
) -> Path:
    """Bring `url` to `final` through `final`.part."""
    if is_right(final, size, sha256, git_blob):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"cannot make {final.parent}: it is a file, or inside one; choose another folder") from None
    part = final.with_name(final.name + ".part")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is downloading {final}: wait for it, or choose another folder") from None
        if sha256 is None and git_blob is None:
            file.truncate(0)  # nothing to tell this file's first half from another's
        for _ in range(2):  # of an older version in part, or damaged on its way: then once more, from nothing
            try:
                arrived = _stream(url, file, size, headers, remedy, final.name)
            except UserError:
                if not part.stat().st_size:
                    part.unlink()
                raise
            if is_right(part, size or arrived, sha256, git_blob):
                os.fsync(file.fileno())
                part.replace(final)
                return final
            file.truncate(0)
    part.unlink()
    differs = "hash" if sha256 or git_blob else "size"
    raise UserError(f"{url} is not the file it should be (its {differs} differs): try another mirror, {remedy}")


def _stream(url: str, file: BinaryIO, size: int | None, headers: Mapping[str, str], remedy: str, name: str) -> int:
    """Append to `file` what is missing of `url`, asking for the rest when the connection breaks; returns its length."""
    with ExitStack() as bars:
        bar: Progress | None = None

        def rest() -> int:
            nonlocal bar, size
            have = file.seek(0, os.SEEK_END)
            if size is not None and have >= size:
                return have
            asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
            with get_session().stream("GET", url, headers=asked, timeout=TIMEOUT) as response:
                if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return have  # nothing is missing, or too much is here: the hash will tell
                response.raise_for_status()
                if response.status_code != HTTPStatus.PARTIAL_CONTENT:  # a server that does not know ranges
                    file.truncate(0)
                    have = 0
                if size is None and "Content-Length" in response.headers:
                    size = have + int(response.headers["Content-Length"])
                bar = bar or bars.enter_context(Progress(name, None if size is None else size - have, "B"))
                for chunk in response.iter_bytes():  # a chunk size would lose what it holds when the line drops
                    file.write(chunk)
                    bar.update(len(chunk))
            file.flush()
            return file.tell()

        return _retry(rest, url, remedy, progress=lambda: file.seek(0, os.SEEK_END))


def _retry(ask: Callable[[], T], what: str, remedy: str, progress: Callable[[], int] = lambda: 0) -> T:
    """Call `ask` until it succeeds, waiting longer each time; an advance of `progress` renews the patience.

    Whatever the network or the server does ends as a UserError saying what to do.
    """
    tries, reached, before = 0, False, progress()
    while True:
        try:
            return ask()
        except OfflineModeIsEnabled:
            raise UserError(f"HF_HUB_OFFLINE is set, and {what} is needed: unset it, {remedy}") from None
        except GatedRepoError:
            raise UserError(f"{what} asks for consent: accept its terms on the hub, set HF_TOKEN, {remedy}") from None
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            raise UserError(f"{what} does not exist or is private: check the name, set HF_TOKEN, {remedy}") from None
        except UnicodeEncodeError:
            raise UserError(
                f"{what} cannot be asked: HF_TOKEN, or the token that was saved, is not ASCII: mend it, {remedy}"
            ) from None
        except ValueError as failure:
            reason = first_line(failure)
            raise UserError(
                f"{what} cannot be asked ({reason}): check the address (HF_ENDPOINT) and any HTTPS_PROXY, {remedy}"
            ) from None
        except HTTPError as failure:
            response = getattr(failure, "response", None)
            wait = None
            reason = str(failure).strip() or type(failure).__name__
            if response is not None:
                reached, wait = True, _retry_after(response.headers)
                reason = f"{response.status_code} {response.reason_phrase}"
                if response.status_code not in TRANSIENT:
                    raise UserError(f"{what} answered {reason}: check the address, {remedy}") from None
                if (wait or 0) > LONGEST_WAIT:
                    reason += f" and asks to wait {wait:.0f} s"
                    raise UserError(f"{what} answered {reason}: run the same command after that, {remedy}") from None
            if progress() > before:
                tries, reached, before = 0, True, progress()
            waits = BACKOFF if reached else BACKOFF[:2]
            if tries == len(waits):
                raise UserError(
                    f"cannot get {what} ({reason}): check the network, set HF_ENDPOINT or the URL to a mirror, "
                    f"{remedy}; the same command goes on where it stopped"
                ) from None
            wait = waits[tries] if wait is None else wait
            tries += 1
            print(f"{what}: {reason}; trying again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, by Retry-After or by the hub's RateLimit; None when it does not say."""
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    limit = parse_ratelimit_headers(headers)
    return None if limit is None or limit.remaining else limit.reset_in_seconds + 1.0
