"""Batches of documents, as Arrow arrays of text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prepare.common.cli import replace_surrogates

BATCH_BYTES = 4 << 20  # large enough that a call of the engine costs little, small enough to keep many in memory
BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of an input."""

    texts: pa.LargeStringArray  # valid UTF-8, without nulls
    done: float  # share of the input that is read so far, 0 to 1
    rows: np.ndarray | range  # the position of each document among the `read` rows
    read: int  # rows that were read: documents, and values that were skipped

    @property
    def skipped(self) -> int:
        return self.read - len(self.texts)

    def lengths(self) -> np.ndarray:
        """The documents' lengths in bytes, int64."""
        return pc.binary_length(self.texts).to_numpy()

    @property
    def size(self) -> int:
        """Bytes of text."""
        return int(self.lengths().sum())


def group(values: Iterable[object], done: Callable[[], float], start: int = 0) -> Iterator[Batch]:
    """Group values, after skipping `start` of them, into batches of about BATCH_BYTES."""
    batch: list[object] = []
    characters = 0
    for value in islice(values, start, None):
        batch.append(value)
        characters += len(value) if isinstance(value, str) else 0
        if characters >= BATCH_BYTES or len(batch) >= BATCH_BYTES // 64:
            yield batch_of(batch, done())
            batch, characters = [], 0
    if batch:
        yield batch_of(batch, done())


def batch_of(values: Sequence[object], done: float) -> Batch:
    """Make a batch of values: those that are not text are skipped, lone surrogates become U+FFFD, as in tiktoken."""
    rows = [row for row, value in enumerate(values) if isinstance(value, str)]
    texts = [value for value in values if isinstance(value, str)]
    try:
        array = pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        array = pa.array(map(replace_surrogates, texts), pa.large_string())
    return Batch(array, done, np.array(rows, np.int64), len(values))


def arrow_batch(array: pa.Array, done: float) -> Batch:
    """Make a batch of large strings or binaries: nulls are skipped, invalid UTF-8 becomes U+FFFD. Valid text is not
    copied."""
    read, rows = len(array), range(len(array))
    if array.null_count:
        rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
        array = array.drop_null()
    _, offsets, data = array.buffers()
    array = pa.LargeStringArray.from_buffers(len(array), offsets, data, None, 0, array.offset)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:  # invalid UTF-8
        texts = [value.decode("utf-8", "replace") for value in array.cast(pa.large_binary()).to_pylist()]
        array = pa.array(texts, pa.large_string())
    return Batch(array, done, rows, read)


def resize(arrays: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """Cast arrays of text to large strings or binaries of at most twice BATCH_BYTES each, or of one longer value.

    Small arrays are concatenated; large ones are cut into copies of their parts, so that the original can be freed.
    """
    batch: list[pa.Array] = []
    size = 0
    for array in arrays:
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        array = array.cast(pa.large_binary() if kind in BINARY else pa.large_string())  # copies the offsets only
        parts = [array]
        if array.nbytes > 2 * BATCH_BYTES:
            parts = (pa.concat_arrays([array[row : row + 1]]) for row in range(len(array)))
        for part in parts:
            if batch and size + part.nbytes > BATCH_BYTES:
                yield batch[0] if len(batch) == 1 else pa.concat_arrays(batch)
                batch, size = [], 0
            batch.append(part)
            size += part.nbytes
    if batch:
        yield batch[0] if len(batch) == 1 else pa.concat_arrays(batch)
