"""OpenWebText to token shards, split as nanoGPT splits it.

    python prepare/openwebtext.py                              # from the hub -> data/openwebtext
    python prepare/openwebtext.py --input 'owt/*.parquet'      # its parquet files, if you have them already

The documents, their order and the held-out split are nanoGPT's (data/openwebtext/prepare.py): train_test_split of
`datasets` with test_size 0.0005 and seed 2357, over the hub's parquet files (nanoGPT loads the same documents by a
script, which `datasets` no longer runs). One difference: end-of-text begins each document here, and ends it in nanoGPT.
It needs 24 GB for the download and 40 GB for the text as Arrow, both removed at the end; the shards take 18 GB.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from prepare.common.cli import DATA, Parser, UserError, nonempty, nonempty_path
from prepare.common.files import allow_soft_locks
from prepare.pipeline.options import add_job_options, chosen_tokenizer
from prepare.pipeline.output_folder import PROGRESS, pinned_revision
from prepare.pipeline.tokenize_job import TokenizeJob, run_job
from prepare.sources.batches import Batch, arrow_batch, resize
from prepare.sources.hub import fetch_hub_file, hub_files
from prepare.sources.inputs import LocalFile, Source, find_inputs
from prepare.sources.readers import check_documents, read_documents

REPO, FOLDER = "Skylion007/openwebtext", "plain_text"
TEST_SIZE, SEED = 0.0005, 2357  # nanoGPT's
ROWS = 1000  # documents read at a time


@dataclass
class Corpus:
    """The dataset, split; loaded when a part of it is first fetched."""

    files: Callable[[], list[Path]]  # downloads the parquet files
    column: str
    cache: Path

    @cached_property
    def splits(self) -> dict:
        """The datasets.DatasetDict with `train` and `test`, as train_test_split names them; `column` holds large
        binaries. UserError names a file that cannot be read."""
        import datasets  # takes two seconds to import: after the arguments are checked
        from datasets.exceptions import DatasetsError

        allow_soft_locks()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        paths = self.files()
        for path in paths:
            check_documents(path, self.column)
        try:
            rows = datasets.Dataset.from_parquet(
                [str(path) for path in paths],
                columns=[self.column],
                cache_dir=str(self.cache),
                # one type for all files, which holds any bytes; by default it is the first file's
                features=datasets.Features({self.column: datasets.Value("large_binary")}),
                batch_size=ROWS,  # the default, the size of the first row group, may be 0
            )
            return rows.train_test_split(test_size=TEST_SIZE, seed=SEED, shuffle=True)
        except DatasetsError as failure:
            for path in paths:  # the error does not name the file
                for _ in read_documents(path, self.column):
                    pass
            reason = failure.__cause__ or failure
            raise UserError(f"cannot write {self.cache} ({reason}): free space or choose another --out") from failure


@dataclass
class Part(Source):
    """Consecutive documents of one split."""

    corpus: Corpus
    split: str
    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.split}, part {self.index + 1} of {self.count}"

    def identity(self) -> dict:
        return {"name": self.name}  # the revision, or the files' checksums, are the folder's

    def fetch(self) -> None:
        _ = self.corpus.splits

    def batches(self, start: int = 0) -> Iterator[Batch]:
        rows = self.corpus.splits["test" if self.split == "val" else "train"].with_format("arrow")
        begin, end = (len(rows) * edge // self.count for edge in (self.index, self.index + 1))

        def arrays() -> Iterator[pa.Array]:
            for first in range(begin + start, end, ROWS):
                yield from rows[first : min(end, first + ROWS)][self.corpus.column].chunks

        read = start
        for array in resize(arrays()):
            read += len(array)
            yield arrow_batch(array, read / (end - begin))


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    scratch = options.out / ".download"
    facts = {"column": options.column, "split": f"train_test_split(test_size={TEST_SIZE}, seed={SEED})"}
    if options.input:
        paths = []
        for path in find_inputs(options.input):
            if not isinstance(path, Path) or path.suffix != ".parquet":
                raise UserError(
                    f"--input {path}: OpenWebText is read from local .parquet files; prepare/fineweb.py takes others"
                )
            check_documents(path, options.column)
            paths.append(path)
        dataset, revision, count = "local files", None, len(paths)
        facts["files"] = [LocalFile(path, options.column).contents for path in paths]
        corpus = Corpus(lambda: paths, options.column, scratch)
    else:
        pinned = pinned_revision(options.out, REPO) or "main"
        commit, files = hub_files(REPO, FOLDER, ".parquet", pinned)
        dataset, revision, count = REPO, commit, len(files)

        def download() -> list[Path]:
            return [fetch_hub_file(REPO, name, commit, scratch) for name in files]

        corpus = Corpus(download, options.column, scratch / "arrow")
    count = max(1, 5 * count // 4)  # of the hub's 80 files this makes 100 parts of 90M tokens, one shard each
    sources = [Part(corpus, "val"), *(Part(corpus, "train", index, count) for index in range(count))]
    tokenizer = chosen_tokenizer(options.tokenizer, options.engine)
    job = TokenizeJob(sources, "openwebtext", dataset, revision, tokenizer, facts, options.shard_tokens)
    try:
        run_job(job, options.out, options.workers)
    except UserError:
        if not (options.out / PROGRESS).exists():  # nothing to resume: the next input may be another
            shutil.rmtree(corpus.cache, ignore_errors=True)  # but not the downloads
            with suppress(OSError):  # the folder holds something else
                options.out.rmdir()
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("Turn OpenWebText into token shards, split as nanoGPT does.", "python prepare/openwebtext.py")
    parser.add_argument(
        "--input", nargs="+", type=nonempty, metavar="FILE", help="its .parquet files, if you have them already"
    )
    parser.add_argument("--column", default="text", help="where the files have the text")
    parser.add_argument("--out", type=nonempty_path, default=DATA / "openwebtext", help="folder of the shards")
    add_job_options(parser)
    return parser.parse_args(argv)
