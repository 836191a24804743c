"""Token shards: files of uint16 tokens after a small header, written once and then memory-mapped.

NAME_{train,val}_FFFPPP.bin: 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the
tokens as little-endian uint16. FFF numbers the input file, PPP the part of it. This is the format of llm.c
(data_common.py) and modded-nanogpt. manifest.json in the same folder records their inputs and checksums.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prepare.common.cli import ROOT, UserError
from prepare.common.files import check_content, file_sha256, find_paths, name_in_errors

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
SHARD_TOKENS = 100_000_000
MAX_TOKENS = 2**31 - 1  # of a shard: the header counts them in an int32
MAX_PARTS = 1000  # of one input file: PPP has three digits
TOKEN = np.dtype("<u2")
SUFFIXES = (".bin", ".npy")


# --- names ------------------------------------------------------------------------------------------------------------


def shard_name(name: str, file: int, part: int, split: str | None = None) -> str:
    """`fineweb_train_002001.bin` for part 1 of input file 2. Only the very first is val, unless `split` is given."""
    number = file * MAX_PARTS + part
    return f"{name}_{split or ('train' if number else 'val')}_{number:06d}.bin"


def shard_number(file_name: str) -> int | None:
    """The FFFPPP of a shard's (or its temporary file's) name; None for other files."""
    match = re.fullmatch(r"[\w.-]+_(?:train|val)_(\d{6,9})\.bin(?:\.tmp)?", file_name)
    return int(match[1]) if match else None


def find_shards(globs: str | Sequence[str]) -> list[Path]:
    """The .bin and .npy files that match, each once, sorted by path with numbers in numerical order.

    A relative glob is tried from the working directory, then from the repository's root. UserError if one matches none.
    """
    found: set[Path] = set()
    for pattern in [globs] if isinstance(globs, str) else globs:
        full = list(dict.fromkeys((Path.cwd() / pattern, ROOT / pattern)))
        for glob in full:
            shards = {path for path in find_paths(glob) if path.suffix in SUFFIXES and path.is_file()}
            if shards:
                break
        else:
            raise UserError(
                f"no token shards match {' or '.join(map(str, full))}: prepare the data first (python "
                "prepare/fineweb.py), or give another glob, quoted, such as 'data/fineweb10B/*_train_*.bin'"
            )
        found |= shards
    return sorted(found, key=lambda path: re.sub("[0-9]+", lambda number: number[0].zfill(20), str(path)))


# --- reading ----------------------------------------------------------------------------------------------------------


def open_shard(path: Path | str) -> np.ndarray:
    """A shard's tokens: a 1-D read-only memory map of uint16, header and length checked.

    Also opens nanoGPT's header-less train.bin and val.bin, and build-nanogpt's .npy.

    Raises:
        UserError: names the file, what was found in it, and the remedy.
    """
    path = Path(path)
    remedy = "prepare it again (python prepare/verify.py checks a folder)"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES)[: size // 4 * 4], dtype="<i4")
        if not len(header) or header[0] != MAGIC:
            check_content(path)
        if path.suffix == ".npy":
            return _open_npy(path)
    except OSError as failure:
        raise UserError(f"cannot read the shard {path}: {failure.strerror}") from failure
    if path.name in ("train.bin", "val.bin") and (len(header) == 0 or header[0] != MAGIC):  # nanoGPT's
        if size == 0 or size % TOKEN.itemsize:
            raise UserError(f"{path} holds {size:,} bytes, not a number of uint16 tokens: {remedy}")
        return np.memmap(path, dtype=TOKEN, mode="r")
    found = [int(number) for number in header[:2]]
    if len(header) < HEADER_INTS or found != [MAGIC, VERSION]:
        wanted = f"magic number {MAGIC} and version {VERSION}"
        raise UserError(f"{path} ({size:,} bytes) starts with {found}, not with a shard's {wanted}: {remedy}")
    tokens = int(header[2])
    expected = HEADER_BYTES + tokens * TOKEN.itemsize
    if tokens < 1 or size != expected:
        found = f"{size:,} bytes where its header says {tokens:,} tokens ({expected:,} bytes)"
        raise UserError(f"{path} holds {found}: {remedy}")
    return np.memmap(path, dtype=TOKEN, mode="r", offset=HEADER_BYTES, shape=(tokens,))


def _open_npy(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as failure:
        raise UserError(f"{path} is not an .npy array ({failure}): prepare it again") from failure
    if tokens.dtype != TOKEN or tokens.ndim != 1 or not len(tokens):
        found = f"{tokens.dtype} {tokens.shape}"
        raise UserError(f"{path} holds {found}, not one dimension of uint16 tokens: prepare it again")
    return tokens


# --- writing ----------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Cut the token stream of one input file into shards of `shard_tokens` tokens; the last may be shorter.

    A shard has a temporary name until it is complete and on disk. `records` lists the finished ones as the manifest
    does: file, tokens, documents (those that begin in it) and sha256. Nothing is created before the first token.

    Args:
        name, file: of the shards' names, see shard_name.
        held_out: tokens at the beginning that go to validation shards; None: those of shard 0 of file 0.
        records: of shards that an earlier run has finished.
        defer: called with the work that publishes a full shard (fsync, checksum, rename), to be run later, in order.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        file: int = 0,
        shard_tokens: int = SHARD_TOKENS,
        held_out: int | None = None,
        records: Sequence[dict] = (),
        defer: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self.folder, self.name, self.file, self.shard_tokens = folder, name, file, shard_tokens
        self.held_out = (0 if file else shard_tokens) if held_out is None else held_out  # of the tokens to come
        self.records = list(records)
        self.held_out -= sum(record["tokens"] for record in self.records)
        self._part = len(self.records)
        self._defer = defer
        self._stream: BinaryIO | None = None  # of the shard being written
        self._path = folder
        self._room = self._tokens = self._documents = 0

    def write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Append 1-D tokens; `starts` are the positions in them where documents begin.

        Raises:
            UserError: the input file needs more shards than three digits can number.
        """
        position = 0
        while position < len(tokens):
            if self._stream is None:
                self._begin_shard()
            end = min(len(tokens), position + self._room - self._tokens)
            with name_in_errors(_temporary(self._path)):
                self._stream.write(np.ascontiguousarray(tokens[position:end], dtype=TOKEN).data)
            self._tokens += end - position
            first, last = np.searchsorted(starts, (position, end))
            self._documents += int(last - first)
            position = end
            if self._tokens == self._room:
                self.finish_shard()

    def finish_shard(self) -> None:
        """Publish what has been written since the last shard, if anything."""
        if self._stream is None:
            return
        stream, path, tokens, documents = self._stream, self._path, self._tokens, self._documents
        with name_in_errors(_temporary(path)):
            stream.seek(0)
            stream.write(_header(tokens))
        self._stream = None
        self._part += 1
        self.held_out -= tokens
        self._tokens = self._documents = 0
        self._defer(lambda: self.records.append(_publish(stream, path, tokens, documents)))

    def _begin_shard(self) -> None:
        if self._part == MAX_PARTS:
            raise UserError(
                f"input file {self.file} fills more than {MAX_PARTS:,} shards of {self.shard_tokens:,} tokens: delete "
                f"{self.folder} and give a larger --shard-tokens"
            )
        held_out = self.held_out > 0
        self._room = min(self.held_out, self.shard_tokens) if held_out else self.shard_tokens
        self._path = self.folder / shard_name(self.name, self.file, self._part, "val" if held_out else "train")
        self._stream = _temporary(self._path).open("wb")
        self._stream.write(bytes(HEADER_BYTES))


def write_shard(path: Path, tokens: np.ndarray, documents: int = 1) -> dict:
    """Write one complete shard (1-D tokens below 65,536) and return its record for the manifest."""
    with name_in_errors(_temporary(path)), _temporary(path).open("wb") as stream:
        stream.write(_header(len(tokens)))
        stream.write(np.ascontiguousarray(tokens, dtype=TOKEN).data)
        return _publish(stream, path, len(tokens), documents)


def _header(tokens: int) -> bytes:
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _publish(stream: BinaryIO, path: Path, tokens: int, documents: int) -> dict:
    """Fsync a temporary file, rename it to its final name, and return its record for the manifest."""
    with name_in_errors(_temporary(path)):
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
    digest = file_sha256(_temporary(path))
    _temporary(path).replace(path)
    return {"file": path.name, "tokens": tokens, "documents": documents, "sha256": digest}
