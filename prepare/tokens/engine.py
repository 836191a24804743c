"""gigatoken, a fast engine with tiktoken's tokens: from Arrow's text buffers to token ids, and where the two differ.

It is over twenty times as fast as tiktoken because it caches words. The cache grows with the text, so it is emptied
when the process has grown by CACHE_BYTES for each encoding thread.
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

from prepare.common.files import name_in_errors

# Emptying each cache after 256 MB of text took three times the memory on words that never repeat (docs/log.md).
CACHE_BYTES = 400 << 20  # of memory, for each thread
CACHE_TEXT_BYTES = 32 << 20  # of text that each cache encodes at least, in case something else takes the memory
MANY_LEAD_BYTES = 1000  # in a batch; above that NumPy searches faster than memchr

_memchr = ctypes.CDLL(None).memchr
_memchr.restype, _memchr.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

# Where the Unicode tables of tiktoken 0.14.0 (version 16) and gigatoken 0.10.0 (17) differ: first and last code points.
# gigatoken treats them as letters (U+11DE0 to 11DE9: digits). Found by trying every code point (make exhaustive).
DIFFERING_CODE_POINTS = np.array([
    (0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4),
    (0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2), (0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED),
    (0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479),
])  # fmt: skip


class Gigatoken:
    """Byte-level BPE with GPT-2's pre-tokenization and a vocabulary's ranks, by gigatoken. Each calling thread gets its
    own tokenizer, which releases the GIL."""

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        self._ranks = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._cache_generation = 0
        self._threads = 0  # with a tokenizer of this generation
        self._base_memory = 0  # bytes, before the first tokenizer
        self._text_bytes = 0  # encoded by this generation

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """The ids (uint32) of all texts, concatenated, and len(texts) + 1 offsets (int64) into them.

        The texts are valid UTF-8 without nulls. A literal <|endoftext|> in them is text.
        """
        if len(texts) == 0:
            return np.empty(0, np.uint32), np.zeros(1, np.int64)
        offsets, data = arrow_buffers(texts)
        # the engine takes awkward's arrays; these share Arrow's memory
        characters = ak.contents.NumpyArray(data, parameters={"__array__": "char"})
        strings = ak.contents.ListOffsetArray(ak.index.Index64(offsets), characters, parameters={"__array__": "string"})
        encoded = self._tokenizer(len(data)).encode_batch(ak.Array(strings), parallel=False).layout
        return np.asarray(encoded.content.data), np.asarray(encoded.offsets.data)

    def _tokenizer(self, text_bytes: int) -> BPETokenizer:
        """This thread's tokenizer; a new one, with an empty cache, when the caches have grown too large."""
        with self._lock:
            self._text_bytes += text_bytes
            grown = _resident_bytes() - self._base_memory
            if self._text_bytes > CACHE_TEXT_BYTES * self._threads and grown > CACHE_BYTES * self._threads > 0:
                self._cache_generation += 1
                self._threads = self._text_bytes = 0
            if getattr(self._thread, "generation", None) == self._cache_generation:
                return self._thread.tokenizer
            self._thread.tokenizer = None  # frees its memory first
            if self._threads == 0 and self._cache_generation == 0:
                self._base_memory = _resident_bytes()
            self._threads += 1
            self._thread.generation = self._cache_generation
        with tempfile.NamedTemporaryFile("w", suffix=".tiktoken") as file:  # the engine reads ranks from files only
            with name_in_errors(Path(file.name)):
                file.write(self._ranks)
                file.flush()
            self._thread.tokenizer = BPETokenizer.from_tiktoken(file.name, "gpt2", {})
        return self._thread.tokenizer


def documents_for_tiktoken(texts: pa.LargeStringArray) -> np.ndarray:
    """The indices (int64, sorted) of the texts that contain one of DIFFERING_CODE_POINTS.

    In UTF-8 those begin with the bytes E0, EA or F0, which are rare in English, so that this costs 2% of encoding.
    """
    offsets, data = arrow_buffers(texts)
    leads = offsets[0] + _find_lead_bytes(data[offsets[0] : offsets[-1]])
    if not len(leads):
        return leads
    # decode the code points of three bytes, and of four
    four = data[leads] == 0xF0
    code = np.where(four, 0, data[leads] & 0x0F).astype(np.int64)
    for position in (1, 2):
        code = code << 6 | data[leads + position] & 0x3F
    code[four] = code[four] << 6 | data[leads[four] + 3] & 0x3F
    row = np.searchsorted(DIFFERING_CODE_POINTS[:, 0], code, "right") - 1
    found = leads[(row >= 0) & (code <= DIFFERING_CODE_POINTS[row, 1])]
    return np.unique(np.searchsorted(offsets, found, "right") - 1)


def _find_lead_bytes(data: np.ndarray) -> np.ndarray:
    """The positions of the bytes E0, EA and F0 (int64, unsorted). C's memchr finds a few much faster than NumPy."""
    start, found = data.ctypes.data, []
    end = start + len(data)
    for lead in (0xE0, 0xEA, 0xF0):
        place = _memchr(start, lead, end - start)
        while place:
            found.append(place - start)
            if len(found) == MANY_LEAD_BYTES:
                places = np.flatnonzero((data & 0xE5) == 0xE0)  # E0 E2 E8 EA F0
                return places[np.isin(data[places], (0xE0, 0xEA, 0xF0))]
            place = _memchr(place + 1, lead, end - place - 1)
    return np.array(found, np.int64)


def arrow_buffers(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """The buffers of an Arrow array without nulls, not copied: len + 1 offsets (int64), and the bytes."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return offsets, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def _resident_bytes() -> int:
    """This process's resident memory in bytes; 0 on systems without /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (called often)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
