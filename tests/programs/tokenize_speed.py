"""Measure how fast text becomes tokens on this machine: the engine alone, the complete pipeline, and its parts.

    python -m tests.programs.tokenize_speed                                # Shakespeare's plays, repeated
    python -m tests.programs.tokenize_speed --input 'corpus/*.parquet'     # your own text, repeated to --megabytes
    python -m tests.programs.tokenize_speed --tokenizer data/my_4k         # a trained vocabulary, beside `tokenizers`

Repeated text suits gigatoken's cache, in every row of the table: better give much text of your own.
"""

import argparse
import contextlib
import io
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tokenizers

from prepare.common.cli import ROOT, available_cores, run_script
from prepare.pipeline.options import chosen_tokenizer
from prepare.pipeline.tokenize_job import TokenizeJob, run_job
from prepare.sources.inputs import LocalFile, find_inputs
from prepare.sources.plays import HELD_OUT, PLAYS, read_play
from prepare.sources.readers import read_documents
from prepare.tokens.tokenizer import BPETokenizer

RUNS = 3  # of each measurement
SLOW_BYTES = 50_000_000  # of text for tiktoken and tokenizers: they are slow, and as fast on little text as on much


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", nargs="+", help="text to repeat; default: the plays")
    parser.add_argument("--megabytes", type=int, default=1000, help="of text, at least")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--tokenizer", type=Path, help="of prepare/train_tokenizer.py; default: GPT-2's")
    options = parser.parse_args()
    if options.input:
        paths = find_inputs(options.input)
        texts = [batch.texts for path in paths for batch in read_documents(path, "text")]
    else:
        texts = [pa.array(map(read_play, [*PLAYS, *HELD_OUT]), pa.large_string())]
    with tempfile.TemporaryDirectory(prefix="prepare_bench_") as folder:
        measure(texts, options.megabytes * 1_000_000, options.workers, Path(folder), options.tokenizer)


def measure(texts: list[pa.LargeStringArray], least: int, workers: int, folder: Path, vocabulary: Path | None) -> None:
    """Measure everything on `texts`, repeated to at least `least` bytes in parquet files, and print the table."""
    once = pa.table({"text": pa.chunked_array(texts)})
    size = _count_bytes(once["text"].chunks)
    paths = [folder / f"{number:03d}.parquet" for number in range(-(-least // size))]
    for path in paths:
        pq.write_table(once, path, row_group_size=1000, compression="zstd")
    total = size * len(paths)
    del texts, once
    speeds: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], object], amount: int = total) -> None:
        start = time.perf_counter()
        work()
        speeds.setdefault(what, []).append(amount / 1e6 / (time.perf_counter() - start))

    def pipeline(out: Path) -> None:
        inputs = [LocalFile(path, "text") for path in paths]
        job = TokenizeJob(inputs, "bench", "bench", None, chosen_tokenizer(vocabulary, "gigatoken"), {})
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_job(job, out, workers)

    out = folder / "out"
    verify = [sys.executable, str(ROOT / "prepare" / "verify.py"), str(out)]
    pipeline(out)  # once before measuring, so that the files are in the page cache
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    batches = [batch.texts for path in paths for batch in LocalFile(path, "text").batches()]
    few = batches[: 1 + len(batches) * SLOW_BYTES // total]
    for _ in range(RUNS):
        shutil.rmtree(out)
        fast, slow = chosen_tokenizer(vocabulary, "gigatoken"), chosen_tokenizer(vocabulary, "tiktoken")  # empty caches
        timed("gigatoken alone, text in memory", partial(_encode, fast, batches, workers))
        timed("whole pipeline: parquet to shards on disk", lambda: pipeline(out))
        timed("verify.py on the result, as a process", lambda: subprocess.run(verify, check=True, capture_output=True))
        timed("reading alone", lambda: [None for path in paths for _ in LocalFile(path, "text").batches()])
        timed("tiktoken alone, text in memory", partial(_encode, slow, few, workers), _count_bytes(few))
        if vocabulary:
            theirs = tokenizers.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))  # takes all cores
            strings = [text for array in few for text in array.to_pylist()]
            timed("tokenizers alone, text in memory", partial(theirs.encode_batch_fast, strings), _count_bytes(few))
    medians = {what: statistics.median(speed) for what, speed in speeds.items()}
    engine = medians["gigatoken alone, text in memory"]
    print(f"{total / 1e6:,.0f} MB of text in {len(paths)} files, {workers} workers, {available_cores()} cores")
    print(f"{'':42}{'MB/s':>8}  {'of the engine':>13}  {'slowest and fastest run':>24}")
    for what, speed in medians.items():
        spread = f"{min(speeds[what]):,.1f} to {max(speeds[what]):,.1f}"
        print(f"{what:42}{speed:8,.1f}  {speed / engine:13.0%}  {spread:>24}")
    print(f"peak memory of the whole pipeline: {memory:,.0f} MiB")


def _encode(tokenizer: BPETokenizer, batches: list[pa.LargeStringArray], workers: int) -> None:
    work = tokenizer._gigatoken.encode if tokenizer._gigatoken else tokenizer.encode_texts
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, batches):
            pass


def _count_bytes(texts: list[pa.LargeStringArray]) -> int:
    return sum(pc.sum(pc.binary_length(array)).as_py() or 0 for array in texts)


if __name__ == "__main__":
    run_script(main)
