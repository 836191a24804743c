"""Turn FineWeb, or your own files, into token shards.

python prepare/fineweb.py                              # FineWeb sample-10BT from the hub -> data/fineweb10B
python prepare/fineweb.py --input 'corpus/*.parquet'   # your own documents
python prepare/fineweb.py --pretokenized 10            # a billion published tokens
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import shutil

from prepare.common.cli import (
    DATA,
    ArgumentError,
    Parser,
    nonempty,
    nonempty_path,
    positive,
    run_script,
)
from prepare.pipeline.options import add_job_options, add_task
from prepare.pipeline.output_folder import pinned_revision
from prepare.pipeline.pretokenized import fetch_pretokenized
from prepare.pipeline.tokenize_job import TokenizeJob, run_job
from prepare.sources.hub import hub_files
from prepare.sources.inputs import HubFile, LocalFile, Source, find_inputs
from prepare.sources.readers import check_documents
from prepare.tokens.tokenizer import GPT2Tokenizer


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    name = "finewebedu" if options.edu else "fineweb"
    out = options.out or DATA / (name + options.version.replace("BT", "B"))
    if options.pretokenized is not None:
        fetch_pretokenized(out, options.edu, options.version, options.pretokenized or None)
        return

    # the input files
    if options.input:
        paths = find_inputs(options.input)
        for path in paths:
            check_documents(path, options.column, options.encoding)
        choices = options.column, options.separator, options.encoding
        sources: list[Source] = [LocalFile(path, *choices) for path in paths]
        dataset, revision = "local files", None
    else:
        dataset = "HuggingFaceFW/fineweb-edu" if options.edu else "HuggingFaceFW/fineweb"
        # a folder keeps the commit that it was started with, even if the dataset has changed
        pinned = pinned_revision(out, dataset) or "main"
        listing = hub_files(dataset, f"sample/{options.version}", ".parquet", pinned)
        revision = listing.revision
        sources = [HubFile(dataset, revision, path, out / ".download", options.column) for path in listing.files]

    # tokenize them
    facts = {"column": options.column}
    facts |= {key: value for key in ("separator", "encoding") if (value := getattr(options, key))}
    tokenizer = GPT2Tokenizer(options.engine)
    job = TokenizeJob(sources, name, dataset, revision, tokenizer, facts, options.shard_tokens)
    manifest = run_job(job, out, options.workers, options.task)
    if manifest is None:
        return
    shutil.rmtree(out / ".download", ignore_errors=True)
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    if all("_val_" in shard["file"] for shard in manifest["shards"]):
        print(
            f"warning: all {tokens:,} tokens are in the validation shard, with none left to train on: delete {out} "
            f"and give a smaller shard, such as --shard-tokens {max(1, tokens // 10)}",
            file=sys.stderr,
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("Turn FineWeb, or files of your own, into shards of GPT-2 tokens.", "python prepare/fineweb.py")
    parser.add_argument("--edu", action="store_true", help="FineWeb-Edu instead of FineWeb")
    parser.add_argument("--version", choices=["10BT", "100BT", "350BT"], default="10BT", help="which sample")
    parser.add_argument(
        "--input",
        nargs="+",
        type=nonempty,
        metavar="FILE",
        help="your own .parquet, .jsonl, .csv, .txt, .jsonl.gz, ...: names, folders, globs, URLs (s3://, hf://, ...)",
    )
    parser.add_argument("--column", default="text", help="the column of a .parquet, .jsonl or .csv that holds the text")
    parser.add_argument(
        "--separator", type=unescaped, metavar="TEXT", help=r"between documents of a .txt (\n: line end)"
    )
    parser.add_argument(
        "--encoding", type=nonempty, metavar="NAME", help="of .txt, .jsonl and .csv without a byte-order mark (utf-8)"
    )
    parser.add_argument(
        "--out", type=nonempty_path, help="folder of the shards (default: data/fineweb10B, or the name of the sample)"
    )
    parser.add_argument(
        "--pretokenized",
        nargs="?",
        type=positive,
        const=0,
        metavar="CHUNKS",
        help="download published GPT-2 shards of this data instead (all, or the first CHUNKS of 100M tokens each)",
    )
    add_job_options(parser)
    add_task(parser)
    options = parser.parse_args(argv)
    if options.pretokenized is not None and options.input:
        raise ArgumentError("--pretokenized downloads shards and --input reads local files: give one of them")
    return options


def unescaped(text: str) -> str:
    """argparse type: a separator, in which \\n is a line end."""
    return nonempty(text).replace("\\n", "\n")


if __name__ == "__main__":
    run_script(main)
