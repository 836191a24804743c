"""A folder of as many shards as FineWeb's 15T tokens make, of sparse files: time and memory of a trainer's start, and
of reading up to 2G tokens of their windows.

python -m tests.programs.many_shards [FOLDER] [SHARDS]    # sparse files of 200 MB each; half a minute for 150,000
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prepare.tokens.manifest import build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import HEADER_BYTES, SHARD_TOKENS, _header, find_shards, shard_name
from prepare.tokens.tokenizer import GPT2Tokenizer
from train.data.windows import WindowOrder, Windows

T = TypeVar("T")
PARTS = 6  # shards that an input file makes


def timed(what: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = work()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:55}{time.perf_counter() - start:8.2f} s, peak memory so far {memory:7,.0f} MiB", flush=True)
    return result


def make(folder: Path, shards: int) -> list[dict]:
    """Write the sparse shards; their records."""
    records = []
    for number in range(shards):
        path = folder / shard_name("fineweb", number // PARTS, number % PARTS)
        with path.open("wb") as file:
            file.write(_header(SHARD_TOKENS))
            file.truncate(HEADER_BYTES + 2 * SHARD_TOKENS)
        records.append({"file": path.name, "tokens": SHARD_TOKENS, "documents": 140_000, "sha256": f"{number:064x}"})
    return records


def describe(records: list[dict]) -> dict:
    names = [f"{number:06d}.parquet" for number in range(-(-len(records) // PARTS))]
    inputs = [{"name": name, "documents": 840_000, "tokens": PARTS * SHARD_TOKENS} for name in names]
    return build_manifest("simulated", None, inputs, GPT2Tokenizer().describe(), {}, records)


def main(folder: Path, shards: int) -> None:
    timed("Python, NumPy and torch are loaded", lambda: None)
    records = timed(f"{shards:,} sparse shards are made", lambda: make(folder, shards))
    timed("manifest.json is written", lambda: write_manifest(folder, describe(records)))
    print(f"{'':55}{(folder / 'manifest.json').stat().st_size / 1e6:8.1f} MB")
    timed("manifest.json is read", lambda: read_manifest(folder))
    paths = timed("find_shards", lambda: find_shards(str(folder / "*_train_*.bin")))
    windows = timed("the loader's start: every header read and checked", lambda: Windows(paths, 1024, 50257))
    order = timed("the order of an epoch's shards", lambda: WindowOrder(windows.counts, 0, True))
    timed("a first batch of 512 windows, shuffled", lambda: windows.read([order.locate(i) for i in range(512)]))
    memory("before the first batch")
    batches = min(order.per_epoch, 2_000_000) // 512
    for first in range(0, batches, batches // 4):
        numbers = range(first, min(batches, first + batches // 4))
        timed(f"{len(numbers):,} batches of 512 windows", lambda numbers=numbers: read(windows, order, numbers))
        memory(f"after {numbers[-1] + 1:,} batches")


def read(windows: Windows, order: WindowOrder, numbers: range) -> None:
    for number in numbers:
        windows.read([order.locate(512 * number + i) for i in range(512)])


def memory(when: str) -> None:
    """Print resident memory: the process's own, and the mapped pages of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    print(f"{when:55}own {own:7,.0f} MiB, mapped files {mapped:7,.0f} MiB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as scratch:
        main(Path(scratch), int(sys.argv[2]) if len(sys.argv) > 2 else 150_000)
