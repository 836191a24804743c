"""The command-line options that the commands of prepare/ share."""

import argparse
from pathlib import Path

from prepare.common.cli import available_cores, nonempty, nonempty_path, positive
from prepare.tokens.shards import MAX_TOKENS, SHARD_TOKENS
from prepare.tokens.tokenizer import ENGINES, BPETokenizer, GPT2Tokenizer, open_tokenizer


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Declare --input, and how its files are read."""
    parser.add_argument(
        "--input",
        nargs="+",
        type=nonempty,
        metavar="FILE",
        help="your own .parquet, .jsonl, .csv, .txt, .jsonl.gz, ...: names, folders, globs, URLs (s3://, hf://, ...)",
    )
    parser.add_argument("--column", default="text", help="the column of a .parquet, .jsonl or .csv that holds the text")
    parser.add_argument(
        "--separator", type=unescaped, metavar="TEXT", help=r"between documents of one text (\n: line end)"
    )
    parser.add_argument(
        "--encoding", type=nonempty, metavar="NAME", help="of .txt, .jsonl and .csv without a byte-order mark (utf-8)"
    )


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Declare --tokenizer, --shard-tokens, --workers and --engine."""
    add_shard_options(parser)
    parser.add_argument("--workers", type=positive, default=available_cores(), metavar="N", help="encoding threads")
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="the encoder; the tokens are the same, tiktoken's"
    )


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    """Declare --tokenizer and --shard-tokens."""
    parser.add_argument(
        "--tokenizer", type=nonempty_path, metavar="DIR", help="of prepare/train_tokenizer.py (default: GPT-2's)"
    )
    parser.add_argument("--shard-tokens", type=shard_size, default=SHARD_TOKENS, metavar="N", help="tokens in a shard")


def chosen_tokenizer(folder: Path | None, engine: str) -> BPETokenizer:
    """The tokenizer that --tokenizer names; GPT-2's without one."""
    return open_tokenizer(folder, engine) if folder else GPT2Tokenizer(engine)


def add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", type=array_task, default="1/1", metavar="I/N", help="take every Nth input file, from the Ith on"
    )


def shard_size(text: str) -> int:
    """argparse type: the number of tokens in a shard."""
    tokens = positive(text)
    if tokens > MAX_TOKENS:
        raise argparse.ArgumentTypeError(f"{tokens:,} tokens in a shard is out of range: give 1 to {MAX_TOKENS:,}")
    return tokens


def array_task(text: str) -> tuple[int, int]:
    """argparse type: I/N, task I (from 1) of N."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 3/8")
    return int(index), int(count)


def unescaped(text: str) -> str:
    """argparse type: a separator, in which \\n is a line end."""
    return nonempty(text).replace("\\n", "\n")
