"""Token shards: files of uint16 tokens behind a small header, written once and then memory-mapped.

NAME_{train,val}_FFFPPP.bin: 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the
tokens as little-endian uint16; FFF is the input file, PPP the part of it. The format is llm.c's (data_common.py)
and modded-nanogpt's. manifest.json beside the shards says what they were made of, and their checksums.
"""

import glob
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prepare.common.cli import ROOT, UserError
from prepare.common.files import file_sha256, naming

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
SHARD_TOKENS = 100_000_000
MAX_TOKENS = 2**31 - 1  # of a shard: the header counts them in an int32
MAX_PARTS = 1000  # of one input file: PPP has three digits
TOKEN = np.dtype("<u2")


class TooManyParts(UserError):
    """One input file needs more shards than three digits can number."""


# --- names ------------------------------------------------------------------------------------------------------------


def shard_name(name: str, file: int, part: int, split: str | None = None) -> str:
    """`fineweb_train_002001.bin` for part 1 of input file 2. Only the very first is val, unless `split` says so."""
    number = file * MAX_PARTS + part
    return f"{name}_{split or ('train' if number else 'val')}_{number:06d}.bin"


def shard_number(file_name: str) -> int | None:
    """The FFFPPP of a shard's (or its temporary's) file name; None for other files."""
    match = re.fullmatch(r"[\w.-]{1,100}_(?:train|val)_(\d{6,9})\.bin(?:\.tmp)?", file_name)
    return int(match[1]) if match else None


def find_shards(globs: str | Sequence[str]) -> list[Path]:
    """The .bin and .npy files that match, sorted by path with numbers as numbers, each once.

    A relative glob is tried from the working directory, then from the repository's root. UserError if one matches none.
    """
    found: set[Path] = set()
    for pattern in [globs] if isinstance(globs, str) else globs:
        for start in (Path.cwd(), ROOT):
            paths = (start / name for name in glob.glob(pattern, root_dir=start, recursive=True))  # noqa: PTH207
            shards = {path for path in paths if path.suffix in (".bin", ".npy") and path.is_file()}
            if shards:
                break
        else:
            raise UserError(
                f"no token shards match {pattern!r}, neither from {Path.cwd()} nor from {ROOT}: prepare the data first "
                "(python prepare/fineweb.py), or give another glob, quoted, such as 'data/fineweb10B/*_train_*.bin'"
            )
        found |= shards
    return sorted(found, key=lambda path: re.sub("[0-9]+", lambda number: number[0].zfill(20), str(path)))


# --- reading ----------------------------------------------------------------------------------------------------------


def open_shard(path: Path | str) -> np.ndarray:
    """A shard's tokens: a 1-D read-only memory map of uint16, header and length checked.

    Also opens nanoGPT's header-less train.bin and val.bin, and build-nanogpt's .npy. UserError names the file, what was
    found in it, and the remedy.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            return _open_npy(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES)[: size // 4 * 4], dtype="<i4")
    except OSError as failure:
        raise UserError(f"cannot read the shard {path}: {failure.strerror or failure}") from failure
    remedy = "prepare it again (python prepare/verify.py checks a folder)"
    if (len(header) == 0 or header[0] != MAGIC) and path.name in ("train.bin", "val.bin"):  # nanoGPT's
        if size == 0 or size % TOKEN.itemsize:
            raise UserError(f"{path} holds {size:,} bytes, not a number of uint16 tokens: {remedy}")
        return np.memmap(path, dtype=TOKEN, mode="r")
    if len(header) < HEADER_INTS:
        raise UserError(f"{path} holds {size:,} bytes, less than a shard's header of {HEADER_BYTES:,}: {remedy}")
    magic, version, tokens = (int(number) for number in header[:3])
    if magic != MAGIC:
        raise UserError(f"{path} begins with {magic}, not with the magic number {MAGIC} of a shard: {remedy}")
    if version != VERSION:
        raise UserError(f"{path} has version {version}, and this program reads version {VERSION}: {remedy}")
    expected = HEADER_BYTES + tokens * TOKEN.itemsize
    if tokens < 1 or size != expected:
        found = f"{size:,} bytes where its header says {tokens:,} tokens ({expected:,} bytes)"
        raise UserError(f"{path} holds {found}: {remedy}")
    return np.memmap(path, dtype=TOKEN, mode="r", offset=HEADER_BYTES, shape=(tokens,))


def _open_npy(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as failure:
        raise UserError(f"{path} is no .npy array: {failure}; prepare it again") from failure
    if not isinstance(tokens, np.ndarray) or tokens.dtype != TOKEN or tokens.ndim != 1 or not len(tokens):
        kind = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise UserError(f"{path} holds {kind}, not one dimension of uint16 tokens: prepare it again")
    return tokens


# --- writing ----------------------------------------------------------------------------------------------------------


def join_documents(documents: Sequence[np.ndarray], eot: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Documents' tokens (1-D uint16 each) as one 1-D array, `eot` before each, and where each begins (int64)."""
    offsets = np.zeros(len(documents) + 1, np.int64)
    offsets[1:] = np.cumsum([len(document) for document in documents])
    return insert_end_of_text(np.concatenate([np.empty(0, TOKEN), *documents]), offsets, eot)


def insert_end_of_text(tokens: np.ndarray, offsets: np.ndarray, eot: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The same, of documents that lie one after the other in `tokens` (1-D): document i begins at offsets[i] (int64),
    and the last one ends at offsets[-1]."""
    starts, tokens = offsets[:-1], np.ascontiguousarray(tokens, TOKEN)
    if eot is None or not len(starts):
        return tokens, starts
    import pyarrow as pa  # a trainer, which only reads shards, does without
    import pyarrow.compute as pc

    # documents as Arrow's binary values, so that one call copies each behind its first token, without the GIL
    ends, data = pa.py_buffer(TOKEN.itemsize * offsets), pa.py_buffer(tokens)
    documents = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), [None, ends, data])
    begun = pc.binary_replace_slice(documents, 0, 0, np.array(eot, TOKEN).tobytes())
    return np.frombuffer(begun.buffers()[2], TOKEN), starts + np.arange(len(starts))


class ShardWriter:
    """Cuts one input file's stream of tokens into shards of `shard_tokens`; the last may be shorter.

    A shard has a temporary name until it is whole and on disk. `records` lists the finished ones as the manifest does:
    file, tokens, documents (those that begin in it) and sha256; those given are already there. `defer` is called with
    the work that remains when a shard is full, which may be done later, in order. Leaving the `with` block finishes the
    last shard; an exception discards it. Nothing is created before the first token.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        file: int = 0,
        shard_tokens: int = SHARD_TOKENS,
        split: str | None = None,
        records: Sequence[dict] = (),
        defer: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        if not 0 < shard_tokens <= MAX_TOKENS:
            raise UserError(f"a shard of {shard_tokens:,} tokens cannot be: give 1 to {MAX_TOKENS:,}")
        self.folder, self.name, self.file, self.shard_tokens, self.split = folder, name, file, shard_tokens, split
        self.records = list(records)
        self._part = len(self.records)
        self._defer = defer
        self._stream = None
        self._path = folder
        self._tokens = self._documents = 0

    def write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Append 1-D tokens; `starts` are the positions in them where documents begin (see join_documents)."""
        position = 0
        while position < len(tokens):
            if self._stream is None:
                self._begin()
            end = min(len(tokens), position + self.shard_tokens - self._tokens)
            with naming(_temporary(self._path)):
                self._stream.write(np.ascontiguousarray(tokens[position:end], dtype=TOKEN).data)
            self._tokens += end - position
            first, last = np.searchsorted(starts, (position, end))
            self._documents += int(last - first)
            position = end
            if self._tokens == self.shard_tokens:
                self.finish()

    def _begin(self) -> None:
        if self._part == MAX_PARTS:
            raise TooManyParts(f"more than {MAX_PARTS:,} shards out of one input file")
        self._path = self.folder / shard_name(self.name, self.file, self._part, self.split)
        self._stream = _temporary(self._path).open("wb")
        self._stream.write(bytes(HEADER_BYTES))

    def finish(self) -> None:
        """Publish what has been written since the last shard, if anything."""
        if self._stream is None:
            return
        stream, path, tokens, documents = self._stream, self._path, self._tokens, self._documents
        with naming(_temporary(path)):
            stream.seek(0)
            stream.write(_header(tokens))
        self._stream = None
        self._part += 1
        self._tokens = self._documents = 0
        self._defer(lambda: self.records.append(_bring_to_disk(stream, path, tokens, documents)))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if self._stream is not None:
                with suppress(OSError):  # a full disk refuses the last bytes once more
                    self._stream.close()
                _temporary(self._path).unlink(missing_ok=True)


def write_shard(path: Path, tokens: np.ndarray, documents: int = 1) -> dict:
    """Write one whole shard (1-D tokens below 65,536) and return its record for the manifest."""
    with naming(_temporary(path)), _temporary(path).open("wb") as stream:
        stream.write(_header(len(tokens)))
        stream.write(np.ascontiguousarray(tokens, dtype=TOKEN).data)
        return _bring_to_disk(stream, path, len(tokens), documents)


def _header(tokens: int) -> bytes:
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _bring_to_disk(stream: BinaryIO, path: Path, tokens: int, documents: int) -> dict:
    """Bring a written temporary file to disk and give it its final name; its record for the manifest."""
    with naming(_temporary(path)):
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
    digest = file_sha256(_temporary(path))
    _temporary(path).replace(path)
    return {"file": path.name, "tokens": tokens, "documents": documents, "sha256": digest}
