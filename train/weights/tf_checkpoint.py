"""TensorFlow's checkpoints ("tensor bundles"), read without TensorFlow; every checksum in them is checked.

    model.ckpt.index                 a LevelDB table, sorted: a tensor's name -> its type, shape, file, place, checksum
    model.ckpt.data-00000-of-00001   the tensors' bytes, little-endian, one after the other

Source: TensorFlow's core/util/tensor_bundle and core/protobuf/tensor_bundle.proto; LevelDB's doc/table_format.md.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prepare.common.cli import UserError, first_line

MAGIC = 0xDB4775248B80FB57  # ends a LevelDB table
FOOTER = 48  # bytes: two handles, zeros, the magic number
FLOAT32 = 1  # of TensorFlow's types
POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
LANES, LANE = 4096, 256  # what crc32c looks at side by side, and the bytes of each: both powers of 2


def read_bundle(bundle: Path, begin: str) -> dict[str, Tensor]:
    """The float32 tensors of a checkpoint whose names begin so.

    Args:
        bundle: the checkpoint's path without `.index`.

    Raises:
        UserError: a file is missing, truncated or changed, or holds what is no float32 tensor.
    """
    index = bundle.with_name(bundle.name + ".index")
    tensors, files = {}, {}
    try:
        entries = dict(_table(index.read_bytes()))
        header = dict(_fields(entries.pop(b"")))  # field 1: how many data files, 2: big-endian
        if header.get(2):
            raise ValueError("it is big-endian")
        for key, entry in entries.items():
            name = key.decode()
            if not name.startswith(begin):
                continue
            fields = dict(_fields(entry))  # 1: type, 2: shape, 3: file, 4: place, 5: bytes, 6: checksum, 7: slices
            if fields.get(1) != FLOAT32 or 7 in fields:
                raise ValueError(f"{name} is no float32 tensor in one piece")
            number, place, size = (fields.get(field, 0) for field in (3, 4, 5))
            if number not in files:
                file = f"{bundle.name}.data-{number:05}-of-{header.get(1, 0):05}"
                files[number] = np.memmap(bundle.with_name(file), mode="r")
            content = bytearray(files[number][place : place + size])
            if _masked_crc32c(content) != int.from_bytes(fields[6], "little"):
                raise ValueError(f"{name} is truncated or changed: its checksum is another")
            dimensions = (dict(_fields(value)) for field, value in _fields(fields.get(2, b"")) if field == 2)
            shape = [dimension.get(1, 0) for dimension in dimensions]
            tensors[name] = torch.frombuffer(content, dtype=torch.float32).view(shape)
    except (FileNotFoundError, IsADirectoryError) as missing:
        raise UserError(f"{missing.filename} is missing, or no file: copy or download the checkpoint again") from None
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as failure:
        reason = first_line(failure)
        raise UserError(f"{index}: a damaged TensorFlow checkpoint ({reason}); copy or download it again") from None
    return tensors


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a LevelDB table."""
    if len(table) < FOOTER or int.from_bytes(table[-8:], "little") != MAGIC:
        raise ValueError("it is truncated, or no index")
    footer = table[-FOOTER:]
    place = 0
    for _ in range(2):  # over the first handle, the one of the meta index
        _, place = _varint(footer, place)
    for _, handle in _block(table, footer[place:]):
        yield from _block(table, handle)


def _block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block. Behind its entries stand the places of some of them, and how many those are;
    behind it its compression and its checksum."""
    start, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    end = start + size
    if _masked_crc32c(table[start : end + 1]) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise ValueError("it is truncated or changed: a checksum is another")
    if table[end]:
        raise ValueError("it is compressed, which TensorFlow's never are")
    entries = table[start : end - 4 - 4 * int.from_bytes(table[end - 4 : end], "little")]
    key, place = b"", 0
    while place < len(entries):
        shared, place = _varint(entries, place)  # bytes in common with the key before
        own, place = _varint(entries, place)
        size, place = _varint(entries, place)
        key = key[:shared] + entries[place : place + own]
        yield key, entries[place + own : place + own + size]
        place += own + size


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number and value, as an integer, or as bytes where it has a length."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        value, place = _varint(message, place) if tag & 7 in (0, 2) else ({1: 8, 5: 4}[tag & 7], place)
        if tag & 7:  # what was read is the value's length
            value, place = message[place : place + value], place + value
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """An integer, seven bits a byte with the lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


def _masked_crc32c(data: bytes | bytearray) -> int:
    """The checksum as LevelDB stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C (Castagnoli), at some hundred MB/s: each of up to LANES lanes of a piece by itself, then put together.

    What a CRC begins with may as well be added to the first four bytes, after which it begins with 0; and zeros before
    the data change nothing then. So each piece begins with the CRC of those before it, and the first is padded.
    """
    crc, odd = 2**32 - 1, len(data) % 4
    for byte in data[:odd]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (crc & 1) * POLYNOMIAL
    words = np.frombuffer(data, dtype="<u4", offset=odd)
    lanes = min(LANES, 1 << (len(data) // LANE).bit_length())
    piece = lanes * LANE // 4  # words
    table, skip = _crc_tables()
    for end in range(len(words) % piece or piece, len(words) + piece, piece) if len(words) else ():
        part = words[max(0, end - piece) : end]
        padded = np.zeros(piece, dtype="<u4")
        padded[-len(part) :] = part
        padded[-len(part)] ^= crc
        columns = np.ascontiguousarray(padded.view("<u2").reshape(lanes, LANE // 2).T)  # (LANE / 2, lanes)
        states = np.zeros(lanes, dtype=np.uint32)
        for column in columns:
            states = table[(states ^ column) & 0xFFFF] ^ states >> 16
        matrix = skip
        while len(states) > 1:  # neighbours together; then each stands for twice as many bytes
            states = _multiply(matrix, states[::2]) ^ states[1::2]
            matrix = _multiply(matrix, matrix)
        crc = int(states[0])
    return crc ^ 2**32 - 1


@functools.cache
def _crc_tables() -> tuple[np.ndarray, np.ndarray]:
    """What two bytes make of the CRC, uint32 (65536,), and LANE zero bytes of each of its bits, uint32 (32,)."""
    table = np.arange(2**16, dtype=np.uint32)
    for _ in range(16):
        table = table >> 1 ^ (table & 1) * np.uint32(POLYNOMIAL)
    skip = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(LANE // 2):
        skip = table[skip & 0xFFFF] ^ skip >> 16
    return table, skip


def _multiply(matrix: np.ndarray, states: np.ndarray) -> np.ndarray:
    """CRCs, uint32 (n,), times a matrix of bits, of which it has the columns, uint32 (32,)."""
    bits = states[:, None] >> np.arange(32, dtype=np.uint32) & 1  # (n, 32)
    return np.bitwise_xor.reduce(bits * matrix, axis=1)
