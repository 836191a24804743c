"""gigatoken as tiktoken's faster twin: text in Arrow's buffers to GPT-2's tokens, and which documents it may not have.

Its cache of words makes it over twenty times as fast, and grows with the text: it is begun anew when the process has
grown by MEMORY for each thread that encodes.
"""

import base64
import ctypes
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
from gigatoken.gigatoken_rs import BPETokenizer

from prepare.common.files import naming

MEMORY = 400 << 20  # bytes, for each thread
BETWEEN = 32 << 20  # bytes of text that a cache serves at least, should the memory be somebody else's
FEW = 1000  # bytes that are sought one by one in a batch

_memchr = ctypes.CDLL(None).memchr
_memchr.restype, _memchr.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

# Where the Unicode tables of tiktoken 0.14.0 (version 16) and gigatoken 0.10.0 (17) differ: first and last code points.
# gigatoken knows them as letters (U+11DE0 to 11DE9: digits). Found by trying every code point (make exhaustive).
UNLIKE = np.array([
    (0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4),
    (0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2), (0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED),
    (0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479),
])  # fmt: skip


class Gigatoken:
    """GPT-2's encoding by gigatoken; each thread that calls it has a tokenizer of its own, which releases the GIL."""

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        self._ranks = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
        self._own = threading.local()
        self._lock = threading.Lock()
        self._generation = 0  # of the caches
        self._threads = 0  # that have one of this generation
        self._base = 0  # bytes that the process took before the first of them
        self._text = 0  # bytes that they have encoded

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (uint32) of all the texts one after the other, and len(texts) + 1 offsets (int64) in them.

        The texts are valid UTF-8 without nulls. A literal <|endoftext|> in them is text.
        """
        if len(texts) == 0:
            return np.empty(0, np.uint32), np.zeros(1, np.int64)
        offsets, data = buffers(texts)
        # Arrow's buffers as they are; awkward's names for what the engine takes
        letters = ak.contents.NumpyArray(data, parameters={"__array__": "char"})
        strings = ak.contents.ListOffsetArray(ak.index.Index64(offsets), letters, parameters={"__array__": "string"})
        encoded = self._tokenizer(len(data)).encode_batch(ak.Array(strings), parallel=False).layout
        return np.asarray(encoded.content.data), np.asarray(encoded.offsets.data)

    def _tokenizer(self, size: int) -> BPETokenizer:
        """This thread's, with a new cache when the old ones have grown too large."""
        with self._lock:
            self._text += size
            if self._text > BETWEEN * self._threads and _memory() - self._base > MEMORY * self._threads > 0:
                self._generation += 1
                self._threads = self._text = 0
            if getattr(self._own, "generation", None) == self._generation:
                return self._own.tokenizer
            self._own.tokenizer = None  # its memory first
            if self._threads == 0 and self._generation == 0:
                self._base = _memory()
            self._threads += 1
            self._own.generation = self._generation
        with tempfile.NamedTemporaryFile("w", suffix=".tiktoken") as file:  # the engine reads ranks from a file only
            with naming(Path(file.name)):
                file.write(self._ranks)
                file.flush()
            self._own.tokenizer = BPETokenizer.from_tiktoken(file.name, "gpt2", {})
        return self._own.tokenizer


def documents_for_tiktoken(texts: pa.LargeStringArray) -> np.ndarray:
    """Which of the texts hold a code point of UNLIKE: their numbers (int64), in order. Plain English costs next to
    nothing: the bytes of UNLIKE begin with E0, EA or F0, and only those are looked at more closely.
    """
    offsets, data = buffers(texts)
    at = offsets[0] + _leads(data[offsets[0] : offsets[-1]])
    if not len(at):
        return at
    four = data[at] == 0xF0
    code = np.where(four, 0, data[at] & 0x0F).astype(np.int64)
    for step in (1, 2):
        code = code << 6 | data[at + step] & 0x3F
    code[four] = code[four] << 6 | data[at[four] + 3] & 0x3F
    place = np.searchsorted(UNLIKE[:, 0], code, "right") - 1
    found = at[(place >= 0) & (code <= UNLIKE[place, 1])]
    return np.unique(np.searchsorted(offsets, found, "right") - 1)


def _leads(data: np.ndarray) -> np.ndarray:
    """Where the bytes E0, EA and F0 are (int64, in no order). A few are found one by one, by C's memchr, which needs
    no copy as bytes.find does."""
    start, places = data.ctypes.data, []
    end = start + len(data)
    for lead in (0xE0, 0xEA, 0xF0):
        place = _memchr(start, lead, end - start)
        while place:
            places.append(place - start)
            if len(places) == FEW:
                at = np.flatnonzero((data & 0xE5) == 0xE0)  # E0 E2 E8 EA F0
                return at[np.isin(data[at], (0xE0, 0xEA, 0xF0))]
            place = _memchr(place + 1, lead, end - place - 1)
    return np.array(places, np.int64)


def buffers(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Arrow's own memory of an array without nulls: len + 1 offsets (int64), and the bytes they point into."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return offsets, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def _memory() -> int:
    """Bytes of memory that this process takes now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (called often)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
