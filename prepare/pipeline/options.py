"""The command-line options that the commands of prepare/ share."""

import argparse

from prepare.common.cli import available_cores, positive
from prepare.tokens.shards import MAX_TOKENS, SHARD_TOKENS
from prepare.tokens.tokenizer import ENGINES


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Declare --shard-tokens, --workers and --engine."""
    add_shard_tokens(parser)
    add_workers(parser)
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="the encoder; the tokens are the same, tiktoken's"
    )


def add_shard_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard-tokens", type=shard_size, default=SHARD_TOKENS, metavar="N", help="tokens in a shard")


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, default=available_cores(), metavar="N", help="encoding threads")


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
